"""Options: from text to typed fields."""

import enum
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import pytest

from molecule_connect import BackendConfig, Duration, options
from molecule_connect.errors import ConfigError, OptionError, PluginError
from molecule_connect.plugins.option_types import seconds, spelled
from molecule_connect.plugins.options import describe, parse_options
from molecule_connect.plugins.raw_options import GivenOptions, unknown_options


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


@attrs.frozen(kw_only=True)
class Everything:
    text: Annotated[str, "some text"] = "x"
    whole: int = 0
    number: float = 0.0
    truth: bool = True
    file: Path | None = None
    limit: Annotated[Duration, "how long"] = 60.0
    maybe: Duration | None = None
    level: Literal["low", "high", 3] = "low"
    colour: Colour = Colour.RED
    many: list[str] = attrs.field(factory=list)
    waits: tuple[Duration, ...] = ()
    _hidden: str = "h"
    anything: Any = None
    inner: int = attrs.field(init=False, default=7)


def config(**given: Any) -> BackendConfig:
    return BackendConfig(name="acme", workspace_id="ws_1", options=given, label="backend acme")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a=b"], {"a": "b"}),
        (["a=b=c", "empty="], {"a": "b=c", "empty": ""}),
        (["a=1", "a=2", "a=3"], {"a": ["1", "2", "3"]}),
        (["a=1,2"], {"a": "1,2"}),
        ([" a = b "], {"a": " b "}),
    ],
)
def test_splits_at_equals_sign_and_collects_repeats(texts: list[str], expected: dict[str, Any]) -> None:
    assert parse_options(texts) == expected


@pytest.mark.parametrize("text", ["reply", "=x", " =x", ""])
def test_quotes_texts_that_are_not_options(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options([text])

    assert repr(text) in str(caught.value)
    assert "key=value" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("text", "a,b", "a,b"),
        ("whole", "-3", -3),
        ("whole", 4, 4),
        ("number", "1.5", 1.5),
        ("number", 2, 2.0),
        ("truth", "false", False),
        ("truth", "Off", False),
        ("truth", "1", True),
        ("truth", False, False),
        ("file", "/a/b", Path("/a/b")),
        ("file", "~/b", Path.home() / "b"),
        ("limit", "90s", 90.0),
        ("limit", "5m", 300.0),
        ("limit", "1h30m", 5400.0),
        ("limit", "250ms", 0.25),
        ("limit", "2", 2.0),
        ("limit", 1.5, 1.5),
        ("maybe", "2d", 172800.0),
        ("level", "high", "high"),
        ("level", "3", 3),
        ("colour", "green", Colour.GREEN),
        ("many", "a,b", ["a,b"]),
        ("many", ["a", "b"], ["a", "b"]),
        ("waits", ["1s", "1m"], (1.0, 60.0)),
        ("hidden", "seen", "seen"),
        ("anything", "as it is", "as it is"),
    ],
)
def test_a_value_becomes_what_its_field_says(key: str, given: Any, value: Any) -> None:
    made = config(**{key: given}).structure(Everything)

    read = made._hidden if key == "hidden" else getattr(made, key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("text", ["s3cret1", "s3cret2"], "given once"),
        ("text", 42, "text"),
        ("whole", "s3cret", "a whole number"),
        ("whole", "1_000", "a whole number"),
        ("whole", "9" * 5000, "a whole number"),
        ("whole", True, "a whole number"),
        ("number", "nan", "a number"),
        ("truth", "s3cret", "true or false"),
        ("limit", "5 minutes", "a duration such as 90s"),
        ("limit", "-1s", "a duration"),
        ("limit", ["1s", "2s"], "given once"),
        ("level", "s3cret", "one of low, high, 3"),
        ("colour", "s3cret", "one of red, green"),
        ("waits", ["1s", "s3cret"], "a duration"),
        ("file", "a\0b", "a path"),
    ],
)
def test_wrong_values_name_only_the_key(key: str, given: Any, expected: str) -> None:
    with pytest.raises(OptionError) as caught:
        config(**{key: given}).structure(Everything)

    assert f"option '{key}' of backend acme must be" in str(caught.value)
    assert expected in str(caught.value)
    assert "s3cret" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__


def test_names_all_missing_options_with_their_syntax() -> None:
    @attrs.frozen
    class Needy:
        url: str
        key: str

    with pytest.raises(OptionError, match="backend acme needs the option 'url' and 'key'") as caught:
        config(key="").structure(Needy)

    assert caught.value.hint == "set it: --backend-opt url=... --backend-opt key=..."


def test_an_empty_value_is_unset() -> None:
    given = config(text="", other="")

    assert given.structure(Everything).text == "x"
    assert given.get("text") is None
    assert given.get("text", "fallback") == "fallback"
    with pytest.raises(OptionError, match="needs the option 'text'"):
        given.require("text")


def test_repeated_keys_are_no_single_text() -> None:
    with pytest.raises(OptionError, match="'a' of backend acme was given more than once"):
        config(a=["1", "2"]).get("a")


def repeated(*texts: str) -> BackendConfig:
    return BackendConfig(name="acme", options=GivenOptions(parse_options(texts)), label="backend acme")


def test_last_value_of_a_repeated_option_wins() -> None:
    given = repeated(
        "text=s3cret1", "text=s3cret2", "whole=1", "whole=2", "limit=1s", "limit=2s", "truth=no", "truth=yes"
    )

    made = given.structure(Everything)

    assert (made.text, made.whole, made.limit, made.truth) == ("s3cret2", 2, 2.0, True)
    assert given.options.overruled == {"text", "whole", "limit", "truth"}
    assert repeated("a=1", "a=2").get("a") == repeated("a=1", "a=2").require("a") == "2"
    assert "s3cret" not in f"{given!r} {given.options!r}"


def test_a_repeated_list_keeps_every_value() -> None:
    given = repeated("many=a", "many=b", "anything=a", "anything=b")

    made = given.structure(Everything)

    assert (made.many, made.anything) == (["a", "b"], ["a", "b"])
    assert given.options.overruled == set()


def test_empty_last_values_keep_the_default() -> None:
    assert repeated("text=a", "text=").structure(Everything).text == "x"
    with pytest.raises(OptionError, match="needs the option 'text'"):
        repeated("text=a", "text=").require("text")


def test_config_fields_get_the_config() -> None:
    @attrs.frozen
    class Plugin:
        config: BackendConfig
        url: str = ""

    given = config(url="u")

    assert given.structure(Plugin).config is given
    assert [field.key for field in describe(Plugin) or ()] == ["url"]


def test_values_are_in_no_repr() -> None:
    given = config(token="s3cret")

    assert "s3cret" not in f"{given!r} {given} {given.options!r}"
    assert "token" in repr(given.options)


def test_unknown_keys_suggest_the_most_similar_one() -> None:
    (problem,) = unknown_options(GivenOptions({"tmeout": "1s", "cmd": "x"}), ["cmd", "timeout"], "backend exec")

    assert str(problem) == "backend exec has no option 'tmeout', did you mean 'timeout'?"
    assert problem.hint == "its options are cmd, timeout"


def test_what_was_asked_for_is_known() -> None:
    given = config(a="1", b="2", c="3")

    given.get("a")
    given.require("b")
    given.get("d")

    assert given.options.unknown([]) == ["c"]


def test_a_description_needs_no_plugin() -> None:
    shown = {field.key: field for field in describe(Everything) or ()}

    assert list(shown) == [
        *("text", "whole", "number", "truth", "file", "limit", "maybe", "level", "colour", "many", "waits"),
        *("hidden", "anything"),
    ]
    assert (shown["text"].type, shown["text"].default, shown["text"].help) == ("text", "x", "some text")
    assert (shown["limit"].type, shown["limit"].default, shown["limit"].help) == (
        "duration (90s, 5m)",
        "1m",
        "how long",
    )
    assert shown["truth"].default == "true"
    assert shown["colour"].type == "one of red, green"
    assert shown["colour"].default == "red"
    assert shown["file"].type == "path"
    assert shown["waits"].type == "duration (90s, 5m), may be repeated"
    assert not shown["text"].required


def test_factories_are_described_by_their_declared_class() -> None:
    @options(Everything)
    def factory(config: BackendConfig) -> object:
        return config.structure(Everything)

    def silent(config: BackendConfig) -> object:
        return config.get("text")

    assert describe(factory) == describe(Everything)
    assert describe(silent) is None


def test_unsupported_types_are_the_authors_error() -> None:
    @attrs.frozen
    class Odd:
        what: int | str = 1

    with pytest.raises(PluginError, match="'what'"):
        config(what="1").structure(Odd)


def test_state_folder_is_private_and_lazy(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "backends" / "acme"
    given = BackendConfig(name="acme", state_folder=lambda: folder)
    assert not folder.exists()

    assert given.state_dir == folder

    assert {stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent, tmp_path / "state")} == {0o700}


def test_concurrent_state_folder_requests_all_succeed(tmp_path: Path) -> None:
    for n in range(20):
        folder = tmp_path / str(n) / "backends" / "acme"
        given = BackendConfig(name="acme", state_folder=partial(Path, folder))
        ready = threading.Barrier(8)

        def asked(given: BackendConfig = given, ready: threading.Barrier = ready) -> Path:
            ready.wait()
            return given.state_dir

        with ThreadPoolExecutor(8) as pool:
            assert {each.result() for each in [pool.submit(asked) for _ in range(8)]} == {folder}


def test_unusable_state_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=str(tmp_path / "file" / "x")):
        _ = BackendConfig(name="acme", state_folder=lambda: tmp_path / "file" / "x").state_dir
    with pytest.raises(ConfigError, match="but has none"):
        _ = BackendConfig(name="acme").state_dir


def test_a_childs_environment_holds_no_token() -> None:
    environ = {
        "PATH": "/bin",
        "EMPTY": "",
        "MOLECULE_API_URL": "http://localhost",
        "MOLECULE_WORKSPACE_TOKEN": "tok-1",
        "MOLECULE_WORKSPACE_TOKEN_FILE": "/f",
        "MOLECULE_WORKSPACES": "[]",
        "MOLECULE_JOURNAL_URL": "postgresql://a:b@c/d",
        "MOLECULE_ADMIN_TOKEN": "",
        "COPY": "tok-1",
        "GIVEN": "tok-2",
    }
    given = BackendConfig(name="acme", secrets=frozenset({"tok-2"}))

    assert given.child_environment(environ) == {
        "PATH": "/bin",
        "EMPTY": "",
        "MOLECULE_API_URL": "http://localhost",
    }
    assert "tok-2" not in repr(given)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0.25, "250ms"),
        (0.0, "0s"),
        (1.5, "1.5s"),
        (59.0, "59s"),
        (90.0, "90s"),
        (300.0, "5m"),
        (5400.0, "1h30m"),
        (7200.0, "2h"),
    ],
)
def test_durations_are_shown_as_they_are_written(amount: float, text: str) -> None:
    assert spelled(amount) == text
    assert seconds(text) == amount
