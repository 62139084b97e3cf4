"""Plans measured on ranks, and the machine they run on: estimate beside measurement."""
