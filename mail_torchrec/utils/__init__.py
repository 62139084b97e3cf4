"""Small tools that know nothing of models: logging, spans, locks, folders that are written whole."""
