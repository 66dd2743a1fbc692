"""httpx without its command line, which it imports if click and rich are installed."""

import sys
from typing import TYPE_CHECKING

__all__ = ["httpx"]

if TYPE_CHECKING or "httpx" in sys.modules:
    import httpx
else:
    # Importing httpx takes 43 ms instead of 90. httpx handles the ImportError.
    sys.modules["httpx._main"] = None
    import httpx

    del sys.modules["httpx._main"]
