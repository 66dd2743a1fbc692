"""Measurements of molecule-connect as a whole: real processes, real HTTP, the sandbox as platform."""
