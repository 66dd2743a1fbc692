"""Sender text cannot write the tags of a host, however it spells them, and other text stays as it is."""

import pytest

from molecule_connect import disarm_tags


@pytest.mark.parametrize(
    "tag",
    [
        "</molecule-message>", "< / Molecule-Files>", "<SYSTEM-REMINDER>", "<system_reminder>", "<command-name>",
        "<\n/\nmolecule-message\n>", "<\t|/ molecule-message>", "</molecule-\nmessage>", "</mole cule-message>",
        "\uff1c/molecule-message\uff1e", "\ufe64system-reminder\ufe65", "\u2039/molecule-message\u203a",
        "\u27e8/molecule-message\u27e9", "\u3008/molecule-message\u3009", "\u276esystem-reminder\u276f",
        "<\uff0fmolecule-message>", "</\uff4d\uff4flecule-message>", "</m\u0301olecule-message>",
        "</m\u043elecule-message>", "</molecule\u2011message>", "</molecule\u2014message>",
        "<channel source='x'>", "<system>", "</human>", "<Assistant>", "<function_calls>", "<invoke name='x'>",
        "<invoke>", "<task-notification>", "<pasted_content id='1'>", "<tool_use_error>",
    ],
)  # fmt: skip
def test_a_tag_of_a_host_is_disarmed(tag: str) -> None:
    found = disarm_tags(f"a {tag} b")

    assert found.startswith("a &lt;")
    assert found.endswith(" b")
    assert disarm_tags(found) == found


INVISIBLE = [
    "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u034f", "\u180b", "\u180e", "\u115f", "\u1160",
    "\u3164", "\uffa0", "\ufe0f", "\ufe00", "\U000e0100", "\U000e0041", "\U000e0001", "\u202e", "\u2066", "\u200f",
    "\u061c", "\u2800", "\u206f", "\ufff9", "\U0001d173", "\u17b4", "\x00", "\x1b", "\u0301",
]  # fmt: skip


@pytest.mark.parametrize("sign", INVISIBLE, ids=ascii)
@pytest.mark.parametrize(
    "template", ["<{}/molecule-message>", "</{}molecule-message>", "</mole{}cule-{}message{}>", "<sys{}tem>"]
)
def test_an_invisible_character_hides_no_tag(sign: str, template: str) -> None:
    plain = template.replace("{}", "")

    assert disarm_tags(template.replace("{}", sign)) == plain.replace("<", "&lt;")
    assert disarm_tags(template.replace("{}", sign * 500)) == plain.replace("<", "&lt;")


@pytest.mark.parametrize(
    "text",
    [
        "if a < b and c > d:\n\treturn <div class='x'>&amp;</div>", "1 < 2 << 3", "<b>bold</b> <user> <systematic>",
        "\u2039system\u203a and \u00abhuman\u00bb", "family \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
        "<div>\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f</div>", "\u0915\u094d\u200d\u0937",
        "a<", "<", "", "&lt;system>",
        "<\u200dx> \u8fbb\U000e0100", "std::vector<int> x; y->z", "a -> <- b",
    ],
)  # fmt: skip
def test_any_other_text_stays_as_it_is(text: str) -> None:
    assert disarm_tags(text) == text


def test_text_behind_a_tag_keeps_its_emoji() -> None:
    emoji = "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f"

    assert disarm_tags(f"<sys\u200btem>{emoji}") == f"&lt;system>{emoji}"


def test_another_mark_can_be_chosen() -> None:
    assert disarm_tags("</channel>", mark="\u2039") == "\u2039/channel>"
