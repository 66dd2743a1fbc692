"""Plugin archives: good ones, and one for each known attack."""

import gzip
import io
import tarfile
from collections.abc import Callable

MIB = 1024 * 1024
BOMB_MIB = 300


def _entry(name: str, kind: bytes = tarfile.REGTYPE, *, mode: int = 0o644, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname = kind, mode, link
    return entry


def _pack(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    # A timestamp would change the digest with each download, so that none could be pinned.
    return gzip.compress(packed.getvalue(), mtime=0)


def _good(*more: tuple[tarfile.TarInfo, bytes], setup: bytes = b"echo ready > ready.txt\n") -> bytes:
    return _pack(
        (_entry("plugin.yaml"), b"name: hello\nversion: 1.0.0\n"),
        (_entry("skills", tarfile.DIRTYPE, mode=0o755), b""),
        (_entry("skills/hello.md"), b"# Hello\n\nSay hello.\n"),
        (_entry("setup.sh", mode=0o755), b"#!/usr/bin/env bash\n" + setup),
        *more,
    )


def _bomb() -> bytes:
    packed = io.BytesIO()
    entry = _entry("zeros.bin")
    entry.size = BOMB_MIB * MIB
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as stream:
        stream.write(entry.tobuf())
        for _ in range(BOMB_MIB):
            stream.write(bytes(MIB))
    return packed.getvalue()


TARBALLS: dict[str, Callable[[], bytes]] = {
    "hello": _good,
    "failing-setup": lambda: _good(setup=b"echo no such tool >&2\nexit 3\n"),
    "links": lambda: _good(
        (_entry("passwords", tarfile.SYMTYPE, link="/etc/passwd"), b""),
        (_entry("above", tarfile.SYMTYPE, link="../.."), b""),
        (_entry("twin", tarfile.LNKTYPE, link="plugin.yaml"), b""),
    ),
    "hostile-escape": lambda: _good((_entry("skills/../../escaped.txt"), b"out\n")),
    "hostile-absolute": lambda: _good((_entry("/escaped.txt"), b"out\n")),
    "hostile-device": lambda: _good((_entry("null", tarfile.CHRTYPE), b"")),
    "hostile-through-link": lambda: _good(
        (_entry("door", tarfile.SYMTYPE, link="../.."), b""), (_entry("door/escaped.txt"), b"out\n")
    ),
    "hostile-bomb": _bomb,
    "broken": lambda: _good()[:-40],
    "not-a-tarball": lambda: b"<html>Please sign in</html>",
}
