"""Print the alert rules or the Grafana dashboard: ``python -m molecule_connect_observe rules|dashboard``."""

import sys
from importlib.resources import files

FILES = {"rules": "molecule.rules.yml", "dashboard": "grafana-dashboard.json"}
USAGE = "usage: python -m molecule_connect_observe rules|dashboard"


def main(arguments: list[str]) -> int:
    """Print the file that the only argument names. Returns the exit code."""
    if len(arguments) != 1 or arguments[0] not in FILES:
        sys.stderr.write(f"{USAGE}\n")
        return 2
    sys.stdout.write((files("molecule_connect_observe") / "monitoring" / FILES[arguments[0]]).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
