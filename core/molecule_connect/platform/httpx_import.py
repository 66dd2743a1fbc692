"""httpx without its command line, which it imports if click and rich are installed."""

import sys
from typing import TYPE_CHECKING

__all__ = ["httpx"]

if TYPE_CHECKING or "httpx" in sys.modules:
    import httpx
else:
    # Saves half of the import time of httpx (66 instead of 166 ms on a loaded machine). httpx handles the ImportError.
    sys.modules["httpx._main"] = None
    import httpx

    del sys.modules["httpx._main"]
