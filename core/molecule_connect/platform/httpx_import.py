"""httpx without its own command line, which it imports when click and rich are there: 40 ms that nothing here uses."""

import sys
import types
from typing import TYPE_CHECKING

__all__ = ["httpx"]

if TYPE_CHECKING:
    import httpx
else:
    _stub = "httpx" not in sys.modules and "httpx._main" not in sys.modules
    if _stub:
        sys.modules["httpx._main"] = types.ModuleType("httpx._main")
        sys.modules["httpx._main"].main = lambda: None
    import httpx

    if _stub:
        del sys.modules["httpx._main"]
