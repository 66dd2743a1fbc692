"""Measure what the docs claim: ``python -m benchmarks [NAME ...]``. Figures, not verdicts: nothing here fails."""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench import capacity, fleet, idle, latency, machines, mirror, startup, throughput
from benchmarks.files import files
from benchmarks.hosts import mcp
from benchmarks.sharing import sharing

MEASURES: dict[str, Callable[[], None]] = {
    "startup": startup,
    "latency": latency,
    "throughput": throughput,
    "mirror": mirror,
    "idle": idle,
    "fleet": fleet,
    "capacity": capacity,
    "mcp": mcp,
    "files": files,
    "sharing": sharing,
    "machines": machines,
}


def fsync_ms(folder: Path) -> float:
    """The median time of one small append and fsync, in milliseconds."""
    times = []
    with (folder / "fsync").open("ab", buffering=0) as file:
        for _ in range(50):
            began = time.perf_counter()
            file.write(b"x" * 512)
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def main() -> None:
    """Run the measurements that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*MEASURES, []], help="what to measure; all if none is named")
    names = parser.parse_args().names or list(MEASURES)
    with tempfile.TemporaryDirectory() as folder:
        disk = fsync_ms(Path(folder))
    cpu = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=False).stdout.strip()
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores ({cpu}), load {load:.1f}, fsync {disk:.2f} ms")
    for name in names:
        MEASURES[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
