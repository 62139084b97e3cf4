"""What ranks need of each other: process group, collectives, watchdog, preemption."""
