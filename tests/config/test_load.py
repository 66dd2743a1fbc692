"""Reading lists of workspaces: a workspace with faults is rejected, and all faults are reported at once."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molecule_connect.app import load_list, load_workspaces
from molecule_connect.config.load import parse_file, parse_variable, read_variables
from molecule_connect.config.settings import KEYS, PeerBudget, WorkspaceSettings
from molecule_connect.config.single import read_identity
from molecule_connect.config.workspaces import FleetLimits, WorkspacesError
from molecule_connect.errors import ConfigError

TOKEN = "t0k3n-of-nobody"


def listed(*entries: Any, plugins: bool = False, state_dir: Path | None = None) -> list[WorkspaceSettings]:
    found = parse_variable({"MOLECULE_WORKSPACES": json.dumps(entries)}, state_dir=state_dir)
    return load_list(found, plugins=plugins).whole()


def faults(*entries: Any, **more: Any) -> tuple[str, ...]:
    with pytest.raises(WorkspacesError) as caught:
        listed(*entries, **more)
    assert TOKEN not in f"{caught.value!r} {caught.value} {caught.value.faults}"
    assert caught.value.hint
    return caught.value.faults


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "fleet.toml"


def read(config: Path, text: str, *, mode: int = 0o600, **more: Any) -> list[WorkspaceSettings]:
    config.write_text(text)
    config.chmod(mode)
    return load_list(parse_file(config, more.pop("environ", {}), **more)).whole()


def config_faults(config: Path, text: str, **more: Any) -> tuple[str, ...]:
    with pytest.raises(WorkspacesError) as caught:
        read(config, text, **more)
    assert TOKEN not in f"{caught.value!r} {caught.value} {caught.value.faults}"
    assert caught.value.source == str(config)
    return caught.value.faults


def test_list_variable_replaces_single_workspace() -> None:
    one, two = load_workspaces(
        {
            "MOLECULE_WORKSPACES": json.dumps(
                [
                    {"id": "a", "token": TOKEN},
                    {"id": "b", "token": "other-1", "api_url": "https://b.example", "org_id": "o", "concurrency": 2},
                ]
            ),
            "WORKSPACE_ID": "single",
            "MOLECULE_WORKSPACE_TOKEN": "single-token",
            "PLATFORM_URL": "https://all.example",
        }
    )

    assert (one.workspace_id, one.token, one.api_url, one.org_id) == ("a", TOKEN, "https://all.example", None)
    assert (two.workspace_id, two.token, two.api_url, two.org_id) == ("b", "other-1", "https://b.example", "o")
    assert (two.concurrency, two.patient) == (2, True)
    assert TOKEN not in repr(one)


def test_environment_names_a_single_workspace(tmp_path: Path) -> None:
    environ = {"WORKSPACE_ID": "a", "MOLECULE_PLATFORM_URL": "https://p.example", "MOLECULE_AGENT_NAME": "Ann"}

    (one,) = load_workspaces({**environ, "MOLECULE_WORKSPACE_TOKEN": TOKEN})

    assert (one.workspace_id, one.token, one.api_url, one.agent_name) == ("a", TOKEN, "https://p.example", "Ann")
    assert (one.agent_description, one.agent_skills) == (None, ())
    assert one.patient is False
    with pytest.raises(ConfigError, match="no workspace token"):
        load_workspaces(environ, state_dir=tmp_path)
    (tmp_path / "a.token").touch()
    assert load_workspaces(environ, state_dir=tmp_path)[0].token is None
    assert load_workspaces({**environ, "MOLECULE_STATE_DIR": str(tmp_path)})[0].token is None
    with pytest.raises(ConfigError, match="no workspace id"):
        load_workspaces({})


def test_environment_sets_the_agent_card() -> None:
    asked = {"MOLECULE_AGENT_DESCRIPTION": "sings", "MOLECULE_AGENT_SKILLS": "alto, tenor ,,alto"}

    (one,) = load_workspaces({"WORKSPACE_ID": "a", "MOLECULE_WORKSPACE_TOKEN": TOKEN, **asked})

    assert (one.agent_description, one.agent_skills) == ("sings", ("alto", "tenor"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "it is not JSON (line 1, column 2)"),
        ("[" * 100_000, "it is not JSON"),
        ('{"id": "a"}', "it is not a JSON array"),
        ("[]", "it names no workspace"),
        ("[3]", "workspace 1: it is not a table of keys"),
    ],
)
def test_what_is_no_list_is_refused(text: str, fault: str) -> None:
    with pytest.raises(WorkspacesError) as caught:
        load_workspaces({"MOLECULE_WORKSPACES": text})
    assert caught.value.faults == (fault,)


def test_repeated_key_is_a_fault() -> None:
    twice = f'''[{{"id": "a", "token": "{TOKEN}", "options": {{"reply": "1", "reply": "2"}}}},
        {{"id": "b", "token": "{TOKEN}", "token": "other", "id": "c"}}]'''
    with pytest.raises(WorkspacesError) as caught:
        load_workspaces({"MOLECULE_WORKSPACES": twice})
    assert caught.value.faults == (
        "workspace 1 (a): the key 'reply' twice",
        "workspace 2 (c): the key 'id' twice",
        "workspace 2 (c): the key 'token' twice",
    )


def test_reports_every_fault_with_its_entry(tmp_path: Path) -> None:
    found = faults(
        {"token": TOKEN},
        {"id": "b", "token": ""},
        {"id": "c", "token": TOKEN, "tokn": TOKEN, "concurrency": 0, "grace": -1},
        {"id": "b", "token": TOKEN},
        {"id": "../d", "token": TOKEN},
        {"id": "e"},
        {"id": "f", "token": TOKEN, "token_file": "x"},
        {"id": "g", "token_file": str(tmp_path / "none")},
        {"id": "h", "token": TOKEN, "api_url": "http://far.example", "backend": ["x"], "options": {"k": {}}},
        {"id": "i", "token": "<paste yours>"},
    )

    starts = [fault.split(" -> ")[0] for fault in found]
    assert starts == [
        "workspace 1: it has no id",
        "workspace 2 (b): the token from MOLECULE_WORKSPACES is empty",
        "workspace 3 (c): unknown key 'tokn', did you mean 'token'?",
        "workspace 3 (c): concurrency must be at least 1, not 0",
        "workspace 3 (c): grace must be between 0 and 86400 seconds, not -1",
        "workspace 4 (b): it has the same id as workspace 2",
        "workspace 5: id: '../d' cannot be a workspace id",
        "workspace 6 (e): it has neither token nor token_file",
        "workspace 7 (f): it has both token and token_file",
        f"workspace 8 (g): the token file {tmp_path}/none does not exist",
        "workspace 9 (h): backend: must be text in quotes",
        "workspace 9 (h): options: the option 'k' must be text, a number, true, false, or a list of them",
        "workspace 9 (h): http://far.example would carry the token in clear text over the network",
        "workspace 10 (i): the token from MOLECULE_WORKSPACES is a placeholder, not a token",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", 5),
        ("token", None),
        ("concurrency", True),
        ("concurrency", 1.5),
        ("grace", "20"),
        ("grace", 10**400),
        ("strict", 1),
        ("use", [1]),
        ("use", {"a": 1}),
        ("options", "cmd=x"),
        ("use_options", ["x"]),
        ("peer_budget", "many"),
        ("peer_budget", "9" * 5000 + "/1"),
        ("peer_budget", 60),
        ("journal_quota", "much"),
        ("journal_quota", 1.5),
    ],
)
def test_value_of_wrong_type_names_its_key(key: str, value: Any) -> None:
    (fault,) = [fault for fault in faults({"id": "a", "token": TOKEN} | {key: value}) if f" {key}: " in fault]
    assert "must be" in fault or "too large" in fault or "60/600" in fault


def test_defaults_of_a_file_apply_to_all(config: Path) -> None:
    (config.parent / "b.token").write_text("token-of-b\n")
    (config.parent / "b.token").chmod(0o600)
    one, two = read(
        config,
        f"""
        [defaults]
        api_url = "https://p.example"
        backend = "exec"
        options = {{ cmd = "a", timeout = 5, words = ["x", true] }}
        peer_budget = 0
        journal_quota = "2GiB"
        [[workspace]]
        id = "a"
        token = "{TOKEN}"
        interval_ms = 250
        options.cmd = "b"
        use = "redact"
        use_options.redact.pattern = "x"
        [[workspace]]
        id = "b"
        token_file = "$DIR/b.token"
        api_url = "https://b.example"
        backend = "mock"
        journal_quota = 5000000
        """,
        environ={"DIR": str(config.parent), "MOLECULE_API_URL": "https://env.example", "MOLECULE_ORG_ID": "org"},
    )

    assert (one.api_url, one.backend, one.poll_interval, one.org_id) == ("https://p.example", "exec", 0.25, "org")
    assert one.options == {"cmd": "b", "timeout": "5", "words": ["x", "true"]}
    assert (one.middleware, one.middleware_options) == (("redact",), {"redact.pattern": "x"})
    assert one.peer_budget == PeerBudget(per_minute=0, per_hour=0)
    assert (one.journal_quota, two.journal_quota) == (2 << 30, 5_000_000)
    # The defaults' options are for the defaults' backend.
    assert (two.api_url, two.backend, two.options) == ("https://b.example", "mock", {})
    assert (two.token, two.token_file) == (None, config.parent / "b.token")


def test_a_flag_wins_over_every_block(config: Path) -> None:
    text = f'[[workspace]]\nid = "a"\ntoken = "{TOKEN}"\nbackend = "exec"\noptions.cmd = "x"\nconcurrency = 2\n'

    (more,) = read(config, text, flags={"concurrency": 5, "options": {"timeout": "1"}})
    (other,) = read(config, text, flags={"backend": "mock"})

    assert (more.concurrency, more.backend, more.options) == (5, "exec", {"cmd": "x", "timeout": "1"})
    assert (other.backend, other.options) == ("mock", {})


def test_token_file_is_relative_to_list(config: Path) -> None:
    (config.parent / "a.token").write_text("token-of-a\n")
    (config.parent / "a.token").chmod(0o600)

    (one,) = read(config, '[[workspace]]\nid = "a"\ntoken_file = "a.token"\n')

    assert one.token_file == config.parent / "a.token"


def test_new_token_in_a_file_changes_nothing(config: Path) -> None:
    secret = config.parent / "a.token"
    secret.touch(mode=0o600)
    texts = ['[[workspace]]\nid = "a"\ntoken_file = "a.token"\n', '[[workspace]]\nid = "a"\ntoken = "{}"\n']
    found = []
    for token in ("first-token", "second-token"):
        secret.write_text(token)
        found.append([read(config, text.format(token))[0] for text in texts])

    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[[workspace]", "it is not TOML: "),
        ("", "it names no workspace"),
        ("[workspace]\nid = 'a'", "write each workspace under [[workspace]], in two brackets"),
        ("[[workspaces]]\nid = 'a'", "unknown key 'workspaces', did you mean 'workspace'?"),
        ("defaults = 3", "defaults must be a table: [defaults]"),
        ("[defaults]\ntoken = 't0k3n-of-nobody'", "[defaults]: token belongs to one workspace"),
        ("[defaults]\nid = 'a'", "[defaults]: id belongs to one workspace"),
        ("[[workspace]]\nid = 'a'\ntoken_file = '$NOWHERE/x'", "workspace 1 (a): token_file contains a variable"),
        ("[[workspace]]\nid = 'a'\ntoken_file = '~nobody-here/x'", "workspace 1 (a): ~nobody-here/x refers to a user"),
        ('[[workspace]]\nid = "a"\ntoken_file = "a\\u0000b"', "workspace 1 (a): a path contains a NUL"),
        (f"[[workspace]]\nid = 'a'\ntoken_file = '{'x' * 300}'", "workspace 1 (a): the token file "),
        (f"[[workspace]]\nid = {'9' * 5000}", "it is not TOML"),
        ("x = " + "[" * 5000, "it is not TOML"),
        (
            "[[workspace]]\nid = 'a'\ntoken_file = '/dev/null'",
            "workspace 1 (a): the token file /dev/null is not",
        ),
        ("[[workspace]]\nid = 'a'\ntoken = 'x'\ngrace = 2026-01-01", "workspace 1 (a): grace: must be a number"),
    ],
)
def test_each_fault_of_a_file_is_told(config: Path, text: str, fault: str) -> None:
    assert any(found.startswith(fault) for found in config_faults(config, text))


def test_reports_an_unreadable_file(config: Path) -> None:
    with pytest.raises(WorkspacesError, match="cannot be read: No such file"):
        load_list(parse_file(config, {})).whole()
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkspacesError, match="it is not text"):
        load_list(parse_file(config, {})).whole()


@pytest.mark.parametrize(
    ("mode", "key", "is_refused"),
    [
        (0o604, "token", True),
        (0o604, "token_file", True),
        (0o602, "token_file", True),
        (0o620, "token_file", True),
        (0o640, "token", False),
    ],
)
def test_refuses_a_file_open_to_others(config: Path, mode: int, key: str, is_refused: bool) -> None:
    (config.parent / "a.token").write_text("token-of-a\n")
    (config.parent / "a.token").chmod(0o600)
    text = f'[[workspace]]\nid = "a"\n{key} = "a.token"\n'
    if is_refused:
        (fault,) = config_faults(config, text, mode=mode)
        assert fault == f"it is open to others (mode {mode:04o}): run chmod 600 {config}"
    else:
        assert len(read(config, text, mode=mode)) == 1


def test_accepts_a_kept_token(tmp_path: Path) -> None:
    (tmp_path / "a.token").write_text("kept-token\n")

    (one,) = listed({"id": "a"}, state_dir=tmp_path)

    assert (one.token, one.token_file) == (None, None)


def test_entry_number_is_not_compared() -> None:
    first, second = listed({"id": "a", "token": TOKEN}, {"id": "b", "token": TOKEN})
    (moved,) = listed({"id": "b", "token": TOKEN})

    assert (first.entry, second.entry, moved.entry) == (1, 2, 1)
    assert moved == second


def test_missing_plugin_is_a_fault() -> None:
    found = faults(
        {"id": "a", "token": TOKEN, "backend": "mokc"},
        {"id": "b", "token": TOKEN, "backend": "mock", "use": ["nothing"]},
        plugins=True,
    )

    assert found[0].startswith("workspace 1 (a): no backend named 'mokc' (installed: ")
    assert "did you mean 'mock'?" in found[0]
    assert found[1].startswith("workspace 2 (b): no middleware named 'nothing'")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("mock"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.dictionaries(st.sampled_from([*KEYS, "other"]), VALUES, max_size=8)


@given(st.lists(ENTRIES | VALUES, max_size=4) | VALUES)
def test_any_list_is_accepted_or_refused(document: Any) -> None:
    try:
        found = load_workspaces({"MOLECULE_WORKSPACES": json.dumps(document)})
    except WorkspacesError as error:
        found = []
        told = error.faults
    else:
        told = tuple(one.check().workspace_id for one in found)
    assert told
    assert all(line.strip() for line in told)


@pytest.mark.parametrize(
    ("flag", "environ", "found"),
    [
        ("f", {"MOLECULE_API_URL": "m"}, "f"),
        (None, {"MOLECULE_API_URL": "m", "PLATFORM_URL": "p"}, "m"),
        (None, {"MOLECULE_API_URL": "", "MOLECULE_PLATFORM_URL": "mp", "PLATFORM_URL": "p"}, "mp"),
        (None, {"PLATFORM_URL": "p"}, "p"),
    ],
)
def test_first_source_of_the_address_counts(flag: str | None, environ: dict[str, str], found: str) -> None:
    assert read_identity({"workspace_id": "a", "api_url": flag}, environ)["api_url"] == found


def test_argument_wins_over_variable() -> None:
    environ = {"WORKSPACE_ID": "b"}
    assert read_identity({"workspace_id": "a"}, environ)["workspace_id"] == "a"
    assert read_identity({}, environ)["workspace_id"] == "b"


def test_empty_argument_is_not_replaced() -> None:
    with pytest.raises(ConfigError, match="no workspace id"):
        read_identity({"workspace_id": ""}, {"WORKSPACE_ID": "b"})


def test_variables_have_types_and_name_themselves() -> None:
    quota = {"MOLECULE_JOURNAL_QUOTA": "2G"}
    assert read_variables({}, single=True) == {}
    found = read_variables({**quota, "MOLECULE_CREATE": "no"}, single=False)
    assert found == {"journal_quota": 2 << 30, "create": False}
    for variable in ("MOLECULE_JOURNAL_QUOTA", "MOLECULE_CREATE"):
        with pytest.raises(ConfigError, match=variable) as caught:
            read_variables({variable: "much"}, single=False)
        assert caught.value.hint


def test_flag_wins_over_variable() -> None:
    found = read_identity({"workspace_id": "a", "journal_quota": 5}, {"MOLECULE_JOURNAL_QUOTA": "2G"})
    assert found["journal_quota"] == 5


def test_included_files_add_workspaces(config: Path) -> None:
    folder = config.parent / "conf.d"
    folder.mkdir()
    for name in ("b", "a"):
        included = folder / f"{name}.toml"
        included.write_text(f'[[workspace]]\nid = "{name}"\ntoken_file = "{name}.token"')
        included.chmod(0o600)
        (folder / f"{name}.token").write_text(TOKEN)
        (folder / f"{name}.token").chmod(0o600)
    text = f'include = ["conf.d/*.toml", "conf.d/a.toml"]\n[[workspace]]\nid = "own"\ntoken = "{TOKEN}"\n'
    found = read(config, text + "[defaults]\nconcurrency = 3")
    assert [(one.workspace_id, one.concurrency) for one in found] == [("own", 3), ("a", 3), ("b", 3)]
    assert found[1].token_file == folder / "a.token"


@pytest.mark.parametrize("text", ["[x", "[defaults]\ngrace = 1", 'include = "x"', "workspace = 1"])
def test_broken_included_file_spares_the_others(config: Path, text: str) -> None:
    included = config.parent / "other.toml"
    included.write_text(text)
    included.chmod(0o600)
    config.write_text(f'include = "*.toml"\n[[workspace]]\nid = "own"\ntoken = "{TOKEN}"')
    config.chmod(0o600)
    listing = load_list(parse_file(config, {}))
    assert [one.workspace_id for one in listing.settings] == ["own"]
    assert [one.name for one in listing.refused] == ["other.toml"]


def test_included_file_of_others_is_refused(config: Path) -> None:
    included = config.parent / "other.toml"
    included.write_text(f'[[workspace]]\nid = "x"\ntoken = "{TOKEN}"')
    included.chmod(0o666)
    config.write_text(f'include = "*.toml"\n[[workspace]]\nid = "own"\ntoken = "{TOKEN}"')
    config.chmod(0o600)
    listing = load_list(parse_file(config, {}))
    assert [one.workspace_id for one in listing.settings] == ["own"]
    assert "chmod 600" in listing.refused[0].lines[0]


def test_disabled_workspace_is_not_served(config: Path) -> None:
    off = '[[workspace]]\nid = "off"\nenabled = false\nbackend = "nope"\n'
    found = read(config, f'{off}[[workspace]]\nid = "on"\ntoken = "{TOKEN}"')
    assert [one.workspace_id for one in found] == ["on"]
    (fault,) = config_faults(config, off)
    assert "enabled = false" in fault


def test_labels_of_defaults_are_merged(config: Path) -> None:
    text = f'[defaults.labels]\nteam = "a"\nzone = "b"\n[[workspace]]\nid = "x"\ntoken = "{TOKEN}"\nlabels.zone = "c"'
    (one,) = read(config, text)
    assert one.labels == {"team": "a", "zone": "c"}


@pytest.mark.parametrize("labels", ['{"no space" = "x"}', "{a = 1}", '{a = "\\u001b[31m"}', "3"])
def test_bad_labels_are_faults(config: Path, labels: str) -> None:
    (fault,) = config_faults(config, f'[[workspace]]\nid = "x"\ntoken = "{TOKEN}"\nlabels = {labels}')
    assert "labels" in fault


def test_limits_of_the_fleet_are_read(config: Path) -> None:
    config.write_text(f'[fleet]\nconcurrency = 3\nmax_cost_per_day = 2\n[[workspace]]\nid = "x"\ntoken = "{TOKEN}"')
    config.chmod(0o600)
    assert load_list(parse_file(config, {})).fleet == FleetLimits(concurrency=3, max_cost_per_day=2.0)


@pytest.mark.parametrize("fleet", ["concurrency = 0", "concurrency = 1.5", "cost = 1", "max_cost_per_day = -1"])
def test_wrong_limits_refuse_the_list(config: Path, fleet: str) -> None:
    (fault,) = config_faults(config, f'[fleet]\n{fleet}\n[[workspace]]\nid = "x"\ntoken = "{TOKEN}"')
    assert "[fleet]" in fault


def _tokens(config: Path, *tokens: str, **environ: str) -> list[str | None]:
    blocks = "".join(f'[[workspace]]\nid = "ws{n}"\ntoken = {token}\n' for n, token in enumerate(tokens))
    return [one.token for one in read(config, blocks, environ={"PATH": os.environ["PATH"], **environ})]


def test_tokens_are_read_from_other_places(config: Path) -> None:
    file = config.parent / "secret"
    file.write_text(TOKEN)
    file.chmod(0o600)
    command = f'{{command = ["sh", "-c", "echo {TOKEN}; echo noise >&2"]}}'
    assert _tokens(config, command, '{env = "MINE"}', MINE="tok_mine-1") == [TOKEN, "tok_mine-1"]
    (one,) = read(config, '[[workspace]]\nid = "x"\ntoken = {file = "secret"}')
    assert one.token_file == file


@pytest.mark.parametrize(
    "token",
    [
        '{env = "MISSING"}',
        '{env = ""}',
        '{env = "A", file = "b"}',
        '{file = "missing"}',
        '{command = "echo x"}',
        "{command = []}",
        '{command = ["/missing/program"]}',
        '{command = ["false"]}',
        '{command = ["true"]}',
        '{command = ["sh", "-c", "echo a-token; echo a-second-line"]}',
        "{keyring = 3}",
        "3",
    ],
)
def test_unusable_tokens_are_faults(config: Path, token: str) -> None:
    (fault,) = config_faults(config, f'[[workspace]]\nid = "x"\ntoken = {token}', environ={"PATH": os.environ["PATH"]})
    assert "second-line" not in fault


def test_each_program_runs_once_at_a_read(config: Path) -> None:
    log = config.parent / "log"
    command = f'{{command = ["sh", "-c", "echo run >> {log}; echo {TOKEN}"]}}'
    assert _tokens(config, command, command) == [TOKEN, TOKEN]
    assert log.read_text() == "run\n"
