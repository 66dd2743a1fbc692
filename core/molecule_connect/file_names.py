"""Names that a file may have on this machine, whatever somebody else called it."""

import re

LONGEST = 100
_LONGEST_EXTENSION = 16
_ODD = re.compile(r"[^A-Za-z0-9._-]")


def safe_name(name: str) -> str:
    """*name* as the platform would write it: base name, plain characters, at most 100 of them.

    A long one keeps an extension of at most 16 characters after its dot. The rule is the platform's (contract 2.12).
    """
    plain = _ODD.sub("_", name.rpartition("/")[2])
    if len(plain) > LONGEST:
        stem, dot, extension = plain.rpartition(".")
        kept = dot + extension if stem and len(extension) <= _LONGEST_EXTENSION else ""
        plain = plain[: LONGEST - len(kept)] + kept
    return plain if plain.strip(".") or len(plain) > 2 else "file"
