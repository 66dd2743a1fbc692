"""Everything that knows order, retry and loss; pure asyncio over the protocols in ``ports``."""
