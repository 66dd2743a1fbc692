"""The files of a chat, both ways: fetched and kept for messages, uploaded for answers."""
