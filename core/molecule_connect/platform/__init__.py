"""Everything that knows HTTP or the platform's JSON."""
