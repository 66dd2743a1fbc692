"""How the names that peers choose are shown."""

import pytest

from molecule_connect.console.names import PeerNames

ONE, OTHER = "3f2a9c1d-0000-4000-8000-000000000001", "77aa01bc-0000-4000-8000-000000000002"


def label(name: str, **more: str) -> str:
    return str(PeerNames({ONE: name, **more}).label(ONE))


@pytest.mark.parametrize("name", ["Research", "ops-eu 2", "翻訳", "🧪 Lab", "Équipe d'accueil", "face"])
def test_shows_the_name_alone(name: str) -> None:
    assert label(name) == name


def test_shortens_ids_of_unnamed_peers() -> None:
    names = PeerNames({ONE: " \x1b[31m\u200b "})

    assert str(names.label(ONE)) == "3f2a9c1d…"
    assert str(names.label("ws_2")) == "ws_2"
    assert str(names.label(None)) == "person"


@pytest.mark.parametrize(
    "name", ["person", "You", "Persоn", "p e r s o n", "you (browser)", "User", "ＹＯＵ", "реrson", "person\u202e"]
)
def test_person_lookalikes_show_their_id(name: str) -> None:
    assert label(name).endswith(" (3f2a…)")


@pytest.mark.parametrize("other", ["Research", "research ", "Rеsearch", "RESEARCH!", "Ｒesearch"])
def test_names_alike_show_their_ids(other: str) -> None:
    names = PeerNames({ONE: "Research", OTHER: other})

    assert str(names.label(ONE)).endswith(" (3f2a…)")
    assert str(names.label(OTHER)).endswith(" (77aa…)")


@pytest.mark.parametrize("name", ["77aa01bc", "Research (77aa…)", "peer 77aa01bc", "77aa01bc…", ONE])
def test_names_like_ids_show_their_id(name: str) -> None:
    assert label(name).endswith(" (3f2a…)")


def test_names_with_one_beginning_show_their_ids() -> None:
    assert label("Research Team One", other="Research Team Two").endswith(" (3f2a…)")


def test_shown_ids_are_unique() -> None:
    names = PeerNames({"aaaabb-1": "Lab", "aaaabc-1": "Lab"})

    assert [str(names.label(one)) for one in ("aaaabb-1", "aaaabc-1")] == ["Lab (aaaabb…)", "Lab (aaaabc…)"]


def test_names_are_one_safe_line() -> None:
    shown = label("\x1b[2Jevil\n\u202eeman\x00" + "x" * 500)

    assert shown.isprintable()
    assert len(shown) < 60


def test_finds_peers_by_name_or_id() -> None:
    names = PeerNames({ONE: "Research", OTHER: "Ops"})

    assert names.find("rESEARCH") == [ONE]
    assert names.find("77AA") == [OTHER]
    assert names.find(ONE) == [ONE]
    assert names.find("") == names.find("sales") == []
    assert sorted(PeerNames({ONE: "Ops", OTHER: "ops"}).find("OPS")) == [ONE, OTHER]
