"""Finding installed plugins, and loading one."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.plugins.distributions import backends, write_distribution

from molecule_connect.errors import BackendNotFoundError, PluginError
from molecule_connect.plugins.discovery import find, installed, installed_backends, load, malformed
from molecule_connect.plugins.entry_points import BACKENDS, COMMANDS, MIDDLEWARE, scan_names

GOOD = """
from molecule_connect import hookimpl

class Plugin:
    def __init__(self, config):
        raise AssertionError("a check makes nothing")

    @hookimpl
    async def handle_a2a(self, request): ...
"""


def test_lists_names_with_distribution_and_version(site: Path) -> None:
    path = write_distribution(site, "acme-tools", version="2.3", entry_points=backends(acme="acme_mod:Plugin"))

    (plugin,) = installed_backends(path=[path])

    assert (plugin.name, plugin.distribution, plugin.version, plugin.problem) == ("acme", "acme-tools", "2.3", "")


def test_looking_imports_nothing(site: Path) -> None:
    path = write_distribution(
        site, "acme", entry_points=backends(acme="acme_mod:Plugin"), acme_mod="raise RuntimeError('imported')"
    )

    assert [plugin.name for plugin in installed_backends(path=[path])] == ["acme"]
    assert "acme_mod" not in sys.modules


@pytest.mark.parametrize(
    "broken",
    [
        "no section\n",
        "[molecule_connect.backends\nx\n= y\n",
        "[molecule_connect.backends]\njust a line\n",
        b"[molecule_connect.backends]\n\xff\xfe = \x00",
    ],
)
def test_a_malformed_file_hides_no_other_distribution(site: Path, broken: str | bytes) -> None:
    write_distribution(site, "broken", entry_points=broken)
    path = write_distribution(site, "acme", entry_points=backends(acme="acme_mod:Plugin"))

    assert [plugin.name for plugin in installed_backends(path=[path])] == ["acme"]
    assert list(scan_names(BACKENDS, path=[path])) == ["acme"]


def test_reports_malformed_files_by_distribution(site: Path) -> None:
    lines = "# a remark\n[console_scripts]\nnot ours\n[molecule_connect.backends]\n; another\noops\n= m:x\nok = m:x\n"
    write_distribution(site, "acme", entry_points=lines)
    write_distribution(site, "Plain", entry_points="first\n[molecule_connect.backends\nlost\n")
    write_distribution(site, "tidy", entry_points=backends(tidy="m:x"))
    path = write_distribution(site, "empty")

    assert malformed(path=[path]) == {
        "Plain 1.0": ("line 1 stands before any [group]", "line 2 starts a group without a closing bracket"),
        "acme 1.0": ("line 6 is not name = module:attribute", "line 7 is not name = module:attribute"),
    }


def test_malformed_lines_hide_no_other_lines(site: Path) -> None:
    path = write_distribution(site, "acme", entry_points="[molecule_connect.backends]\noops\nacme = acme_mod:Plugin\n")

    assert [plugin.name for plugin in installed_backends(path=[path])] == ["acme"]


def test_skips_distributions_without_a_name(site: Path) -> None:
    write_distribution(site, "nameless", metadata="", entry_points=backends(lost="x:y"))
    path = write_distribution(site, "acme", entry_points=backends(acme="acme_mod:Plugin"))

    assert [plugin.name for plugin in installed_backends(path=[path])] == ["acme"]


def test_first_copy_on_the_path_wins(tmp_path: Path) -> None:
    first = write_distribution(tmp_path / "a", "Acme.Tools", version="2.0", entry_points=backends(new="m:x"))
    second = write_distribution(tmp_path / "b", "acme-tools", version="1.0", entry_points=backends(old="m:x"))

    found = installed_backends(path=[first, second])

    assert [(plugin.name, plugin.version) for plugin in found] == [("new", "2.0")]
    assert list(scan_names(BACKENDS, path=[first, second])) == ["new"]


def test_rejects_names_offered_by_two_distributions(site: Path) -> None:
    write_distribution(site, "acme", entry_points=backends(bot="acme_mod:Plugin"))
    path = write_distribution(site, "other", entry_points=backends(bot="other_mod:Plugin"))

    with pytest.raises(PluginError, match=r"offered by acme 1\.0 and by other 1\.0") as caught:
        find(BACKENDS, "bot", path=[path])

    assert "--backend acme:bot or --backend other:bot" in caught.value.hint
    assert find(BACKENDS, "Other:bot", path=[path]).distribution == "other"
    assert all("offered by acme and other" in plugin.problem for plugin in installed_backends(path=[path]))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("def f(:", "SyntaxError"),
        ("class Odd(BaseException): pass\nraise Odd('first\\nsecond')", "Odd: first"),
        ("", "AttributeError"),
    ],
)
def test_import_failures_name_the_distribution(site: Path, source: str, text: str) -> None:
    path = write_distribution(
        site, "acme", version="0.9", entry_points=backends(acme="acme_mod:Plugin"), acme_mod=source
    )

    with pytest.raises(PluginError) as caught:
        load(find(BACKENDS, "acme", path=[path]))

    assert str(caught.value).startswith("backend acme (acme 0.9) cannot be loaded: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pip install --upgrade acme" in caught.value.hint


def test_import_failures_show_file_and_line(site: Path) -> None:
    source = "import sys\nimport no_such_module_anywhere\n"
    path = write_distribution(site, "acme", entry_points=backends(acme="acme_mod:Plugin"), acme_mod=source)

    with pytest.raises(PluginError) as caught:
        load(find(BACKENDS, "acme", path=[path]))

    assert "No module named 'no_such_module_anywhere'" in str(caught.value)
    assert str(caught.value).endswith(f" ({site / 'acme_mod.py'}:2)")


def test_missing_modules_show_no_line(site: Path) -> None:
    path = write_distribution(site, "acme", entry_points=backends(acme="no_such_module:Plugin"))

    with pytest.raises(PluginError) as caught:
        load(find(BACKENDS, "acme", path=[path]))

    assert str(caught.value).endswith("No module named 'no_such_module'")


def test_checking_all_continues_after_failures(site: Path) -> None:
    write_distribution(site, "bad", entry_points=backends(bad="bad_mod:X"), bad_mod="raise SystemExit")
    path = write_distribution(site, "good", entry_points=backends(good="good_mod:Plugin"), good_mod=GOOD)

    bad, good = installed_backends(check=True, path=[path])

    assert "SystemExit" in bad.problem
    assert good.problem == ""


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("    @hookimpl\n", "", "handle_a2a of backend acme is not marked"),
        ("handle_a2a(self, request)", "handle_a2a(self, requst)", "'requst'"),
        ("handle_a2a", "handle_a2e", "'handle_a2e'"),
        ("    @hookimpl\n    async def handle_a2a", "    async def handle_a2e", "does not implement handle_a2a"),
        ("    @hookimpl\n", "    def check(self): ...\n    @hookimpl\n", "check of backend acme is not marked"),
    ],
)
def test_checking_all_finds_what_serving_would_reject(site: Path, before: str, after: str, words: str) -> None:
    source = GOOD.replace(before, after)
    path = write_distribution(site, "acme", entry_points=backends(acme="acme_mod:Plugin"), acme_mod=source)

    (plugin,) = installed_backends(check=True, path=[path])

    assert words in plugin.problem


def test_accepts_hooks_that_only_instances_have(site: Path) -> None:
    source = "class Plugin:\n    def __init__(self, config):\n        self.handle_a2a = config.handler\n"
    path = write_distribution(site, "acme", entry_points=backends(acme="acme_mod:Plugin"), acme_mod=source)

    (plugin,) = installed_backends(check=True, path=[path])

    assert plugin.problem == ""


def test_rejects_invalid_targets(site: Path) -> None:
    path = write_distribution(site, "acme", entry_points=backends(acme="this is: not one"))

    with pytest.raises(PluginError, match="cannot be loaded"):
        load(find(BACKENDS, "acme", path=[path]))


def test_shows_invalid_names_but_never_offers_them(site: Path) -> None:
    path = write_distribution(site, "acme", entry_points="[molecule_connect.backends]\nBad Name = m:x\n")

    (plugin,) = installed_backends(path=[path])

    assert "is not a valid plugin name" in plugin.problem
    assert not scan_names(BACKENDS, path=[path])
    with pytest.raises(PluginError, match="is not a valid plugin name"):
        load(plugin)


@pytest.mark.parametrize("name", ["mock", "exec", "claude-code"])
def test_suggests_install_command_for_first_party_backends(tmp_path: Path, name: str) -> None:
    with pytest.raises(BackendNotFoundError, match="installed: none") as caught:
        find(BACKENDS, name, path=[str(tmp_path)])

    assert caught.value.hint == f'install it: {sys.executable} -m pip install "molecule-connect[{name}]"'


def test_guesses_no_package_names(site: Path) -> None:
    path = write_distribution(site, "acme", entry_points=backends(acme="m:x"))

    with pytest.raises(BackendNotFoundError, match=r"no backend named 'zulu' \(installed: acme\)") as caught:
        find(BACKENDS, "zulu", path=[path])

    assert "pip" not in caught.value.hint
    assert "zulu" not in caught.value.hint


def test_a_near_miss_is_told(site: Path) -> None:
    path = write_distribution(site, "acme", entry_points=backends(acme="m:x"))

    with pytest.raises(BackendNotFoundError) as caught:
        find(BACKENDS, "acmee", path=[path])

    assert caught.value.hint == "did you mean 'acme'?"


def test_groups_are_kept_apart(site: Path) -> None:
    path = write_distribution(
        site,
        "acme",
        entry_points="[molecule_connect.middleware]\nredact = m:x\n[molecule_connect.commands]\nrun = m:y\n",
    )

    assert [plugin.name for plugin in installed(MIDDLEWARE, path=[path])] == ["redact"]
    assert list(scan_names(COMMANDS, path=[path])) == ["run"]
    assert not installed_backends(path=[path])
    with pytest.raises(PluginError, match=r"no middleware named 'redct' \(installed: redact\), did you mean 'redact'"):
        find(MIDDLEWARE, "redct", path=[path])


def test_an_egg_info_folder_counts_too(site: Path) -> None:
    path = write_distribution(site, "acme", suffix="egg-info", entry_points=backends(acme="m:x"))

    assert list(scan_names(BACKENDS, path=[path, "/no/such/folder"])) == ["acme"]
    assert [plugin.name for plugin in installed_backends(path=[path])] == ["acme"]


def test_the_scan_for_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from molecule_connect.plugins.entry_points import scan_names;"
        "scan_names('molecule_connect.backends');"
        "print([m for m in ('importlib.metadata', 'attrs', 'attr', 'pluggy', 'asyncio', 'cattrs') if m in sys.modules])"
    )

    shown = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=False, env={
        "PYTHONPATH": str(Path(__file__).parents[2] / "core"),
    })  # fmt: skip

    assert shown.stdout.strip() == "[]", shown.stderr
