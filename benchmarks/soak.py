"""Kill a connector again and again while people and peers write: ``python -m benchmarks.soak [--rounds N]``.

Ends with status 1 when a message was lost, or answered twice as the platform counts: the same message id is the same
message. How many runs a kill cut short is printed, and is no failure.
"""

import argparse
import collections
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.rig import Rig, Workspace, rig, start_connector

PEERS = 4
SLOWEST_ANSWER = 0.3
# A kill comes after five times the slowest answer on average, or the backend would never end.
MEAN_LIFE = 5 * SLOWEST_ANSWER


class Writers:
    """People and peers who write until they are told to stop. ``sent`` holds what the platform accepted."""

    def __init__(self, sandbox: Rig, target: Workspace, seed: int) -> None:
        self._sandbox, self._target = sandbox, target
        self._peers = [sandbox.workspace(target) for _ in range(PEERS)]
        self._stop = threading.Event()
        self.sent: list[str] = []
        self._threads = [
            threading.Thread(target=self._write, args=(number, peer, random.Random(seed + number)))
            for number, peer in enumerate([*self._peers, None])
        ]

    def start(self) -> None:
        """Begin to write."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the messages under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, number: int, peer: Workspace | None, chance: random.Random) -> None:
        index = 0
        while not self._stop.wait(chance.expovariate(1.0)):
            text = f"{number}-{index}"
            self._sandbox.say(self._target, text, peer)
            self.sent.append(text)
            index += 1


def soak(platform: str, rounds: int, seed: int) -> bool:
    """Kill *rounds* times; whether all was well."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, rig("--platform", platform, "--fault", "late-commits=1-5") as sandbox:
        target, runs = sandbox.workspace(), Path(folder, "runs")
        command = f'cat; sleep 0.$((RANDOM % 3)); echo "$MOLECULE_MESSAGE_ID" >> {runs}'
        options = [
            "--backend",
            "exec",
            "--backend-opt",
            f"cmd=exec bash -c '{command}'",
            "--backend-opt",
            "pass_meta=true",
        ]
        options += ["--peer-budget", "0/0", "--since-secs", "600"]
        writers = Writers(sandbox, target, seed)
        began = time.monotonic()
        process = start_connector(sandbox, target, Path(folder), *options)
        sandbox.call("GET", f"/sandbox/workspaces/{target.id}/beats?count=1&timeout=30")
        writers.start()
        for number in range(rounds):
            time.sleep(min(chance.expovariate(1 / MEAN_LIFE), 4 * MEAN_LIFE) + 0.3)
            process.kill()
            process.wait()
            process = start_connector(sandbox, target, Path(folder), *options)
            if number % 50 == 49:
                print(
                    f"  {number + 1} kills, {len(writers.sent)} messages, {time.monotonic() - began:.0f} s", flush=True
                )
        writers.stop()
        answers = settle(sandbox, target, len(writers.sent))
        process.terminate()
        process.wait(40)
        return report(platform, rounds, writers.sent, answers, runs.read_text().split())


def settle(sandbox: Rig, target: Workspace, count: int) -> list[dict[str, Any]]:
    """The answers once nothing more comes."""
    known, quiet_since = -1, time.monotonic()
    while time.monotonic() - quiet_since < 20:
        answers = sandbox.answers(target)
        if len(answers) != known:
            known, quiet_since = len(answers), time.monotonic()
        elif known >= count and time.monotonic() - quiet_since > 8:
            break
        time.sleep(0.5)
    return answers


def report(platform: str, rounds: int, sent: list[str], answers: list[dict[str, Any]], runs: list[str]) -> bool:
    """Print the figures; whether nothing was lost or doubled."""
    said = collections.Counter({(answer["text"], answer["message_id"] or answer["row_id"]): 1 for answer in answers})
    texts = collections.Counter(text for text, _ in said)
    lost = [text for text in sent if not texts[text]]
    doubled = [text for text, count in texts.items() if count > 1]
    print(
        f"soak {platform}: {rounds} kills, {len(sent)} messages, {len(lost)} lost, {len(doubled)} answered twice, "
        f"{len(runs) - len(set(runs))} runs cut short or repeated"
    )
    for name, texts_ in (("lost", lost), ("doubled", doubled)):
        if texts_:
            print(f"  {name}: {', '.join(texts_[:20])}")
    return not lost and not doubled


def main() -> int:
    """Soak both generations."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="kills per platform generation")
    parser.add_argument("--platform", choices=["2026-05", "2026-08"], action="append")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    given = parser.parse_args()
    print(f"seed {given.seed}")
    try:
        results = [soak(name, given.rounds, given.seed) for name in given.platform or ["2026-05", "2026-08"]]
    except subprocess.SubprocessError as exc:
        print(f"the soak itself failed: {exc}")
        return 2
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
