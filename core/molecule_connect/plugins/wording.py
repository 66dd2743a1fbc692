"""Text fragments for error messages."""


def first_line(exc: BaseException) -> str:
    """The class of *exc* and the first line of its message."""
    text = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {text[0]}" if text else type(exc).__name__


def kind(value: object) -> str:
    """The type of *value* with its article: ``None``, ``a str``, ``an int``."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"
