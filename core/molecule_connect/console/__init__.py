"""Listeners that show events: a live view, plain lines, JSON lines."""
