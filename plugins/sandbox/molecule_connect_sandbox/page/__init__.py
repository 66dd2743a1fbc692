"""The chat page at ``/``: its files, its endpoints under ``/_sandbox/``, and who may call them."""
