"""Number formats of what ranks exchange, and replicas of the sharded tables."""
