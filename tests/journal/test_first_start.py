"""Which messages of people count as answered before a journal began."""

import pytest

from molecule_connect.journal.first_start import Seen, pair
from molecule_connect.models import Kind


def row(text: str, number: int) -> Seen:
    """``q1@c``: a question in conversation c; ``e1``: an echo; ``u1``: an upload without a message."""
    row_id, _, context = text.partition("@")
    kind = {"q": Kind.MESSAGE, "e": Kind.ECHO, "u": Kind.UPLOAD}[row_id[0]]
    return Seen(row_id=row_id, kind=kind, time=number, seq=0, context_id=context or None)


@pytest.mark.parametrize(
    ("feed", "certain", "unanswered"),
    [
        ("", "", ""),
        ("e1 e2", "", ""),
        ("q1 e1 q2", "q1", "q2"),
        ("q1 q2 q3 e1 e2", "q1 q2", "q3"),
        ("q1@a q2@b e1", "", "q2"),
        ("q1@a q2@b e1 e2 q3@a", "q1 q2", "q3"),
        ("q1@a e1 q2@a q3@b e2 q4@b", "q1", "q3 q4"),
        ("e1 q1", "", "q1"),
        ("u1 q1 e1", "", "q1"),
        ("u1 e1 q1", "u1", "q1"),
    ],
)
def test_echoes_pair_with_the_oldest_messages(feed: str, certain: str, unanswered: str) -> None:
    rows = [row(text, number) for number, text in enumerate(feed.split())]
    assert pair(rows[::-1]) == (set(certain.split()), set(unanswered.split()))
