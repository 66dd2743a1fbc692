"""Listeners that show what happens: a live view, plain lines, JSON lines."""
