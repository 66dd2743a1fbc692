"""How Sphinx makes these pages; the tools for it are installed by ``nox -s docs`` alone."""

import tomllib
from pathlib import Path

project = "molecule-connect"
author = "The molecule-connect authors"
release = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"{project} {release}"
