"""``nox`` runs what a change must pass, with the interpreter that nox runs on. ``nox -l`` lists the rest."""

import hashlib
import json
import os
import re
import shutil
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.15"]
CURRENT = f"{sys.version_info.major}.{sys.version_info.minor}"
PLUGINS = ["mock", "exec", "claude_code", "mcp", "sandbox", "agent", "observe", "postgres"]
# Tests wait for processes and timers for half of their time: more workers than cores.
PARALLEL = ["-n", "4", "--dist", "worksteal"]
# Bytecode of the tests and of the programs that they start; an environment variable may turn it off.
WRITE_BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}
VERSION_TESTS = "tests/house/test_versions.py"
TRIES = {
    "": ("molecule --help; molecule backends", "no backend that answers messages is installed"),
    "mock": ("molecule backends --check && molecule try mock hi", "echo: hi"),
    "exec": ("molecule backends --check && molecule try exec hi --backend-opt cmd=cat", "hi"),
    "claude_code": ("molecule backends --check; molecule backends claude-code", "permission_mode"),
    "mcp": ("molecule backends --check; molecule-mcp --help", "--check"),
    "sandbox": ("molecule backends --check; molecule sandbox --help", "--serve"),
    "agent": ("python -c 'from molecule_connect_agent import RemoteAgentClient; print(RemoteAgentClient)'", "client"),
    "observe": (
        "MOLECULE_WORKSPACE_TOKEN=t molecule connect ws_1 --backend inbox --http :9090 --dry-run"
        "; python -m molecule_connect_observe rules",
        "MoleculeDeaf",
    ),
    "postgres": (
        """python -c 'from molecule_connect_postgres import PostgresMirror; print(PostgresMirror("postgresql://u@h/db"))'""",
        "<PostgresMirror h:5432/db>",
    ),
}
CHAT = ("echo hello | molecule sandbox --backend exec --backend-opt cmd='tr a-z A-Z'", "HELLO")

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "typecheck", f"tests-{CURRENT}", "packages"]
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "no"


def show_pyenv_interpreters() -> None:
    """Put pyenv's interpreters on the search path: its own shims show only the selected one."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    names = [f"python{version}" for version in PYTHONS]
    found = [path.parent for name in names for path in sorted(root.glob(f"versions/3.*/bin/{name}"))]
    os.environ["PATH"] = os.pathsep.join([*dict.fromkeys(map(str, found)), os.environ.get("PATH", os.defpath)])


show_pyenv_interpreters()


@nox.session
def lint(session: nox.Session) -> None:
    """Style and layout, by ruff."""
    session.install("-r", "requirements-dev.txt")
    session.run("ruff", "check", ".")
    # The pages show methods outside of their class, indented as they stand in it.
    session.run("ruff", "format", "--check", "--exclude", "*.md", ".")


@nox.session(python="3.11")
def typecheck(session: nox.Session) -> None:
    """Types, by mypy in strict mode; each distribution by itself."""
    session.install("-r", "requirements-dev.txt")
    session.run("mypy", "core", "tests", "benchmarks", "noxfile.py", "conftest.py")
    for plugin in PLUGINS:
        session.run("mypy", f"plugins/{plugin}")
    session.run("mypy", "examples/backend")
    session.run("mypy", "examples/agent")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests, on each interpreter that is found."""
    session.install("-r", "requirements-dev.txt")
    session.run("pytest", *PARALLEL, *session.posargs, env=WRITE_BYTECODE)


@nox.session(venv_backend="none")
def others(session: nox.Session) -> None:
    """All tests, on each other interpreter that is found."""
    for version in PYTHONS:
        if version != CURRENT:
            session.notify(f"tests-{version}")


@nox.session(python="3.11", venv_backend="uv")
def minimums(session: nox.Session) -> None:
    """All tests with the lowest versions that the distributions say they work with."""
    ours = [f"./plugins/{plugin}" for plugin in PLUGINS]
    editable = [word for path in [".", *ours, "./plugins/observe[otel]"] for word in ("-e", path)]
    session.install("--resolution=lowest-direct", *editable)
    before = session.run("uv", "pip", "freeze", silent=True, log=False)
    kept = session.create_tmp()
    constraints = Path(kept, "lowest.txt")
    constraints.write_text("\n".join(line for line in str(before).splitlines() if "==" in line))
    session.install("-c", str(constraints), *tools())
    session.run("pytest", *PARALLEL, *session.posargs, env=WRITE_BYTECODE)


@nox.session
def packages(session: nox.Session) -> None:
    """Wheels and sdists of every distribution, each alone with the core in a fresh environment; strangers' too."""
    session.install("-r", "requirements-dev.txt", "virtualenv")
    dist = build(session)
    smoke(session, dist)
    strangers(session, dist)


@nox.session
def docs(session: nox.Session) -> None:
    """The pages, by Sphinx; a warning is an error."""
    session.install("-e", ".", "-e", "./plugins/agent", "sphinx>=9,<10", "furo>=2025.12", "myst-parser>=5,<6")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session(python="3.11")
def e2e(session: nox.Session) -> None:
    """Real processes against a real sandbox, the drills too, which take minutes and are left out elsewhere."""
    session.install("-r", "requirements-dev.txt")
    session.run(
        "pytest",
        "-m",
        "",
        *(session.posargs or ["tests/e2e", "plugins/sandbox/tests/test_browser.py", "plugins/observe/tests"]),
    )


@nox.session(python="3.11")
def bench(session: nox.Session) -> None:
    """Figures of start, latency, throughput, idleness and fleets; name some to run these alone."""
    session.install("-r", "requirements-dev.txt")
    # Neither uv nor an editable install leaves bytecode, and without it every start is measured as a first one.
    session.run(
        "python", "-m", "compileall", "-q", f"{session.virtualenv.location}/lib", "core", "plugins", silent=True
    )
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(python="3.11")
def soak(session: nox.Session) -> None:
    """A connector killed at random while people and peers write, hundreds of times; fails when a message is lost."""
    session.install("-r", "requirements-dev.txt")
    session.run("python", "-m", "benchmarks.soak", *session.posargs)


@nox.session
def release(session: nox.Session) -> None:
    """What goes out: built into dist/, checked, tried, and described in dist/metadata/ (SBOM, licenses, provenance)."""
    session.install("-r", "requirements-dev.txt", "virtualenv", "twine", "cyclonedx-bom>=7,<8", "pip-licenses>=5.5")
    session.run("pytest", VERSION_TESTS)
    dist = build(session, Path("dist"))
    session.run("twine", "check", "--strict", *map(str, sorted(dist.glob("*.*"))))
    smoke(session, dist)
    describe(session, dist)


# Licenses that dependencies may have: those that ask for no more than a notice.
LICENSES = (
    "Apache-2.0", "Apache Software License", "BSD", "BSD License", "BSD-2-Clause", "BSD-3-Clause", "ISC",
    "ISC License (ISCL)", "MIT", "MIT License", "Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0", "PSF-2.0",
    "Python Software Foundation License", "The Unlicense (Unlicense)",
)  # fmt: skip


def describe(session: nox.Session, dist: Path) -> None:
    """Write what the distributions consist of and how they were built, and check the licenses of dependencies."""
    target = dist / "metadata"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    place = Path(session.create_tmp(), "shipped").resolve()
    session.run("virtualenv", "--clear", "--quiet", str(place))
    session.run(f"{place}/bin/pip", "install", "--quiet", *map(str, sorted(dist.glob("*.whl"))), external=True)
    python = f"{place}/bin/python"
    session.run("cyclonedx-py", "environment", "--output-file", str(target / "sbom.cdx.json"), python)
    licenses = (
        "pip-licenses",
        f"--python={python}",
        "--with-system",
        "--ignore-packages",
        "pip",
        "setuptools",
        "wheel",
    )
    session.run(*licenses, "--format=json", "--with-urls", f"--output-file={target / 'licenses.json'}")
    session.run(*licenses, f"--allow-only={';'.join(LICENSES)}", "--partial-match", silent=True)
    commit = str(session.run("git", "rev-parse", "HEAD", external=True, silent=True)).strip()
    changed = str(session.run("git", "status", "--porcelain", external=True, silent=True)).strip()
    if changed:
        session.warn("the clone has changes that are not committed: the provenance says so")
    (target / "provenance.json").write_text(json.dumps(provenance(dist, commit, is_modified=bool(changed)), indent=2))


def provenance(dist: Path, commit: str, *, is_modified: bool) -> dict[str, object]:
    """An unsigned in-toto statement with a SLSA 1.0 predicate: which files were built from which commit, with what."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(dist.glob("*.*"))}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in digests.items()],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "nox -s release",
                "externalParameters": {"session": "release"},
                "internalParameters": {"modified": is_modified},
                "resolvedDependencies": [{"name": "source", "digest": {"gitCommit": commit}}],
            },
            "runDetails": {
                "builder": {
                    "id": "noxfile.py",
                    "version": {"python": CURRENT, "hatchling": metadata.version("hatchling")},
                },
                "metadata": {"finishedOn": datetime.now(UTC).isoformat(timespec="seconds")},
            },
        },
    }


def tools() -> list[str]:
    """The test tools of requirements-dev.txt, without our own distributions."""
    lines = Path("requirements-dev.txt").read_text().splitlines()
    return [line for line in lines if re.match(r"(pytest|hypothesis|coverage|hatchling|pixeltable)", line)]


def build(session: nox.Session, dist: Path | None = None) -> Path:
    """Build every distribution, the wheel from the sdist, into an empty folder."""
    dist = dist or Path(session.create_tmp(), "dist")
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir(parents=True)
    for source in [".", *(f"plugins/{plugin}" for plugin in PLUGINS)]:
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist), source, silent=True)
    return dist


def smoke(session: nox.Session, dist: Path) -> None:
    """Install the built files in fresh environments, each plugin alone with the core, and use them."""
    built = {name: next(dist.glob(f"molecule_connect{name and f'_{name}'}-*.whl")) for name in TRIES}
    for name, (line, expected) in TRIES.items():
        try_out(session, list(dict.fromkeys([built[""], built[name]])), line, expected)
    try_out(session, list(built.values()), *CHAT)


def strangers(session: nox.Session, dist: Path) -> None:
    """The example and a newly written backend: built, installed beside the core's wheel alone, and tested."""
    scratch = Path(session.create_tmp(), "strangers").resolve()
    place, bin_ = scratch / "venv", scratch / "venv" / "bin"
    shutil.rmtree(scratch, ignore_errors=True)
    session.run("virtualenv", "--clear", "--quiet", str(place))
    core = next(dist.glob("molecule_connect-*.whl"))
    session.run(f"{bin_}/pip", "install", "--quiet", str(core), "build", external=True)
    session.run(f"{bin_}/molecule", "new-backend", "acme", "--into", str(scratch), external=True, silent=True)
    shutil.copytree("examples/backend", scratch / "example", ignore=shutil.ignore_patterns("__pycache__", "dist", ".*"))
    for folder, name in ((scratch / "example", "dice"), (scratch / "molecule-connect-acme", "acme")):
        session.run(
            f"{bin_}/python", "-m", "build", "--outdir", f"{folder}/dist", str(folder), external=True, silent=True
        )
        wheel = next((folder / "dist").glob("*.whl"))
        session.run(f"{bin_}/pip", "install", "--quiet", f"{wheel}[test]", external=True)
        shutil.rmtree(folder / f"molecule_connect_{name}")
        with session.chdir(folder):
            session.run(f"{bin_}/python", "-m", "pytest", "-q", external=True)
            session.run(f"{bin_}/molecule", "try", name, "2d6", external=True)
    session.run(f"{bin_}/molecule", "backends", "--check", external=True)


def try_out(session: nox.Session, wheels: list[Path], line: str, expected: str) -> None:
    """Run a shell line where only *wheels* are installed; what it prints must hold the expected text."""
    place = Path(session.create_tmp(), f"{wheels[-1].stem.partition('-')[0]}_{len(wheels)}").resolve()
    session.run("virtualenv", "--clear", "--quiet", str(place))
    session.run(f"{place}/bin/pip", "install", "--quiet", *map(str, wheels), external=True)
    session.run(f"{place}/bin/pip", "check", external=True)
    said = session.run("sh", "-c", f'PATH="{place}/bin:$PATH"; {line}', external=True, silent=True)
    session.log(f"it printed: {said}")
    if expected not in str(said):
        session.error(f"{line!r} did not print {expected!r}")
