"""A process that serves the workspaces named on stdin."""

import sys

from benchmarks.bench import serve_fleet

if __name__ == "__main__":
    serve_fleet(sys.argv[1])
