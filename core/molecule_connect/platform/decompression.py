"""Bodies that came packed. What a few kilobytes unpack to can fill any memory, so they come out a piece at a time."""

import zlib
from collections.abc import Iterator
from typing import IO

from molecule_connect.platform.httpx_import import httpx

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


class Body:
    """The body of an answer while it comes, as far as anybody asked for it.

    Args:
        encoding: The answer's ``Content-Encoding``.
        cap: Bytes; what is beyond is not taken.
        sink: Where it goes; None: it is kept here.

    Raises:
        httpx.DecodingError: As ``Unpacking`` does.
    """

    def __init__(self, encoding: str, cap: int, sink: IO[bytes] | None) -> None:
        self._unpacking = Unpacking(encoding)
        self._cap, self._sink = cap, sink
        self._kept: list[bytes] = []
        self._size = 0
        self.is_whole = True

    @property
    def kept(self) -> bytes:
        """What did not go to the sink."""
        return b"".join(self._kept)[: self._cap]

    def take(self, packed: bytes) -> bool:
        """Take one piece as it came. False: that was over the cap, and no more is to be read."""
        for piece in self._unpacking.pieces(packed):
            self._size += len(piece)
            self.is_whole = self._size <= self._cap
            if self._sink is None or not self.is_whole:
                self._kept.append(piece)
            else:
                self._sink.write(piece)
            if not self.is_whole:
                return False
        return True
