"""Methods of a reproduction: definitions, choice and configurations."""
