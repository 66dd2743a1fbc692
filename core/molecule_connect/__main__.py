"""``python -m molecule_connect`` is ``molecule``."""

from molecule_connect.cli import main

if __name__ == "__main__":
    main()
