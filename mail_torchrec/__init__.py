"""mail_torchrec: sharded training of click and conversion models with cold-start built in."""
