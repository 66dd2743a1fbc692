"""Everything that knows pluggy or entry points."""
