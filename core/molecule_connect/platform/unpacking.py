"""Bodies that came packed. What a few kilobytes unpack to can fill any memory, so they come out a piece at a time."""

import zlib
from collections.abc import Iterator

from molecule_connect.platform.quick_httpx import httpx

_PIECE = 64 * 1024
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


class Unpacking:
    """Unpacks a body that is read piece by piece.

    Args:
        encoding: The answer's ``Content-Encoding``.

    Raises:
        httpx.DecodingError: It was not asked for: packed in another way, or twice.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding.strip().lower()
        if self._encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise httpx.DecodingError("the answer is packed in a way that was not asked for")
        self._unpacker: zlib._Decompress | None = None

    def pieces(self, piece: bytes) -> Iterator[bytes]:
        """What *piece* unpacks to, each part of a bounded size.

        Raises:
            httpx.DecodingError: It is damaged.
        """
        if self._encoding in ("", "identity"):
            yield piece
            return
        try:
            while piece:
                if self._unpacker is None:
                    self._unpacker = zlib.decompressobj(self._format(piece))
                unpacked = self._unpacker.decompress(piece, _PIECE)
                piece = self._unpacker.unconsumed_tail
                if unpacked:
                    yield unpacked
                if self._unpacker.eof:
                    return
        except zlib.error as exc:
            raise httpx.DecodingError(f"the answer cannot be unpacked: {exc}") from exc

    def _format(self, piece: bytes) -> int:
        if self._encoding != "deflate":
            return _GZIP
        # By the standard it has a header of its own; some servers leave that out.
        return _ZLIB if piece[0] & 0x0F == 8 else _RAW
