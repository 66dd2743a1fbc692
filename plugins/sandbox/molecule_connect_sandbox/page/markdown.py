"""Markdown of agents and people as safe HTML."""

import functools
from collections.abc import Callable

# Longer texts are shown as they are. Rendering this much takes 0.3 s at worst.
MAX_LENGTH = 20_000
# A table row is filled up to the width of its header, so a short text can describe millions of cells.
MAX_CELLS = 10_000

TAGS = {
    *("a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre"),
    *("s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
SCHEMES = {"http", "https", "mailto"}


@functools.cache
def _renderers() -> tuple[Callable[[str], str], Callable[[str], str], Callable[[str], str]]:
    """Render without tables, render with tables, sanitize. Imported late: a chat in the terminal needs none of it."""
    import nh3
    from markdown_it import MarkdownIt

    plain, with_tables = (MarkdownIt("commonmark", {"html": False, "breaks": True}) for _ in range(2))
    for renderer in (plain, with_tables):
        # Images would be requests to other hosts: their links remain.
        renderer.enable("strikethrough").disable("image")
    with_tables.enable("table")
    cleaner = nh3.Cleaner(
        tags=TAGS,
        attributes={"*": set(), "a": {"href"}, "ol": {"start"}},
        url_schemes=SCHEMES,
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
    return plain.render, with_tables.render, cleaner.clean


def to_html(text: str) -> str | None:
    """*text* as sanitized HTML; None if it is too long to render."""
    if len(text) > MAX_LENGTH:
        return None
    plain, with_tables, clean = _renderers()
    lines = text.split("\n")
    cells = len(lines) * max(line.count("|") for line in lines)
    return clean((with_tables if cells <= MAX_CELLS else plain)(text))
