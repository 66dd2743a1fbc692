"""What this machine knows of every message: the journal, and each change of it as SQL."""
