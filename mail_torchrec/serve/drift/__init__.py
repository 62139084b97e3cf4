"""Drift of served new users' virtual behaviours from an exported model's golden ones."""
