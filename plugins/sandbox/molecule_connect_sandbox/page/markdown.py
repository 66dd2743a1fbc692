"""Markdown of agents and people as safe HTML."""

import nh3
from markdown_it import MarkdownIt

# Longer texts are shown as they are. Rendering this much takes 0.3 s at worst.
MAX_LENGTH = 20_000
# A table row is filled up to the width of its header, so a short text can describe millions of cells.
MAX_CELLS = 10_000

TAGS = {
    *("a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre"),
    *("s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
SCHEMES = {"http", "https", "mailto"}

# Images would be requests to other hosts: their links remain.
_PLAIN = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("strikethrough").disable("image")
_WITH_TABLES = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["strikethrough", "table"])
_WITH_TABLES.disable("image")
_CLEANER = nh3.Cleaner(
    tags=TAGS,
    attributes={"a": {"href"}, "ol": {"start"}},
    url_schemes=SCHEMES,
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)


def to_html(text: str) -> str | None:
    """*text* as sanitized HTML; None if it is too long to render."""
    if len(text) > MAX_LENGTH:
        return None
    lines = text.split("\n")
    cells = len(lines) * max(line.count("|") for line in lines)
    renderer = _WITH_TABLES if cells <= MAX_CELLS else _PLAIN
    return _CLEANER.clean(renderer.render(text))
