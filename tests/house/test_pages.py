"""The pages are true: links lead somewhere, commands are the ones that CI runs, nothing is left over."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/*.md"), *ROOT.glob("examples/**/*.md")]
)
INSTALL = (
    "python3 -m venv .venv && .venv/bin/pip install -q hatchling editables && "
    ".venv/bin/pip install -q --no-build-isolation -r "
)
CHAT_COMMAND = f"{INSTALL}requirements.txt && .venv/bin/molecule sandbox --backend exec --backend-opt cmd='tr a-z A-Z'"
TEST_COMMAND = f"{INSTALL}requirements-dev.txt && .venv/bin/nox"
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+\s+(.*)$", re.MULTILINE)
LEFTOVER = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|(?i:\bfor " r"now\b|not yet " r"implemented)")
MACHINE_PATH = re.compile(r"(?<![\w.$~}/-])/(work|tmp|root|farm|home/\w+)/")
SHARED = re.compile(r"\.\./shared")
TEXT = {".py", ".md", ".toml", ".txt", ".sh", ".html", ".js", ".css", ".yml", ".yaml", ".json"}


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^(```|~~~).*?^\1", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in HEADING.findall(prose(page)))
    return {re.sub(r"\s", "-", heading.strip()) for heading in plain}


def broken_links(page: Path) -> Iterator[str]:
    for target in LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


def files() -> list[Path]:
    """Every text file of the house."""
    found = [path for path in ROOT.iterdir() if path.suffix in TEXT]
    for folder in ("core", "plugins", "docs", "tests", "examples", "benchmarks"):
        found += [path for path in ROOT.glob(f"{folder}/**/*") if path.suffix in TEXT]
    hidden = {"__pycache__", "_build", "dist", "node_modules"}
    return sorted(path for path in found if not hidden & set(path.parts) and path.is_file())


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_to_something(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`\n[a](#one-two) [b](#three) [c](gone.md) [d](page.md)\n```\n[e](no-link)\n```\n")
    assert list(broken_links(page)) == ["#three", "gone.md"]


def test_contents_list_every_docs_page() -> None:
    contents = (ROOT / "docs" / "index.md").read_text()
    lacking = [page.stem for page in (ROOT / "docs").glob("*.md") if page.stem != "index" and page.stem not in contents]
    assert lacking == []


def test_the_readme_begins_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert [block.strip() for block in blocks[:2]] == [CHAT_COMMAND, TEST_COMMAND]


def test_ci_runs_the_commands_of_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    commands = [*CHAT_COMMAND.split(" && "), *TEST_COMMAND.split(" && ")]
    assert [command for command in commands if command not in ci] == []


@pytest.mark.parametrize("pattern", [LEFTOVER, MACHINE_PATH, SHARED], ids=["leftover", "machine path", "shared"])
def test_nothing_is_left_over(pattern: re.Pattern[str]) -> None:
    tested = {path for path in files() if pattern is not MACHINE_PATH or "tests" not in path.parts}
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted(tested)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_the_patterns_notice_what_they_are_for() -> None:
    assert LEFTOVER.search("# TO" + "DO: later")
    assert LEFTOVER.search("good enough for" + " now")
    assert not LEFTOVER.search('text.startswith("xxx")')
    assert MACHINE_PATH.search("see /ho" + "me/me/x")
    assert not MACHINE_PATH.search("GET /workspaces/1 and ~/tmp/x and https://a/tmp/")
    assert SHARED.search("../sha" + "red/x")
