"""A local Molecule platform: the rules of the real one, over real HTTP, in one process."""

__version__ = "0.1.0"
