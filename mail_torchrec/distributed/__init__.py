"""Process group, collectives, rendezvous, watchdog and preemption."""
