"""Messages that wait for readers, which are other programs, instead of a backend."""
