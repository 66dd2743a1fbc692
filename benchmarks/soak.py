"""Kill a connector again and again while people and peers write: ``python -m benchmarks.soak [--rounds N]``.

Ends with status 1 when a message was lost, or answered twice as the platform counts (the same message id is the same
message), or when the backend ran for a message whose answer was stored already, or ran twice in one life of the
connector, or when a kill counted as an attempt. How many runs a kill cut short is printed, and is no failure.
"""

import argparse
import collections
import contextlib
import http.client
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.rig import Rig, Workspace, rig, start_connector
from molecule_connect.journal.journal import FILE_NAME

PEERS = 4
SLOWEST_ANSWER = 0.3
# A kill comes after five times the slowest answer on average, or the backend would never end.
MEAN_LIFE = 5 * SLOWEST_ANSWER
# Answers that meet faults again and again wait up to a minute for their next try.
PATIENCE = 90.0


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
            # A fault may hit the writers too; whether the platform took what it did not say it took is not looked at.
            with contextlib.suppress(RuntimeError, OSError, http.client.HTTPException):
                self._sandbox.say(self._target, text, peer)
                self.sent.append(text)
            index += 1


class Lives:
    """One connector after another in the same state folder, whose backend writes down each run as it begins.

    What the journal has an answer for when a connector is dead must not run again in a later one.
    """

    def __init__(self, sandbox: Rig, target: Workspace, folder: Path) -> None:
        self._sandbox, self._target, self._folder = sandbox, target, folder
        self._runs = folder / "runs"
        self._answered_by: dict[str, int] = {}
        self.count = 0
        self.attempts = 0

    def begin(self) -> "subprocess.Popen[bytes]":
        """The next connector."""
        self.count += 1
        work = f'echo "$SOAK_LIFE $MOLECULE_MESSAGE_ID" >> {self._runs}; cat; sleep 0.$((RANDOM % 3))'
        return start_connector(
            *(self._sandbox, self._target, self._folder, "--backend", "exec", "--backend-opt", "pass_meta=true"),
            *("--backend-opt", f"cmd=exec bash -c '{work}'", "--peer-budget", "0/0", "--since-secs", "600"),
            SOAK_LIFE=str(self.count),
        )

    def end(self, process: "subprocess.Popen[bytes]") -> None:
        """Kill it, and note what it had answers for."""
        process.kill()
        process.wait()
        self.look()

    def look(self) -> None:
        """Note what the journal has answers for; nobody may be at work."""
        with contextlib.closing(sqlite3.connect(self._folder / FILE_NAME)) as journal:
            rows = journal.execute("SELECT message_id FROM message WHERE answer IS NOT NULL")
            for (message_id,) in rows.fetchall():
                self._answered_by.setdefault(message_id, self.count)
            self.attempts = journal.execute("SELECT coalesce(max(attempt), 0) FROM message").fetchone()[0]

    def runs(self) -> list[tuple[int, str]]:
        """Every run that began: in which life, and for which message."""
        lines = [line.split() for line in self._runs.read_text().splitlines()]
        return [(int(life), message_id) for life, message_id in lines]

    def needless(self) -> list[str]:
        """The messages that ran although an answer was stored, or twice in one life."""
        runs = collections.Counter(self.runs())
        return [
            f"{message_id} in life {life}"
            for (life, message_id), count in runs.items()
            if count > 1 or life > self._answered_by.get(message_id, life)
        ]


def soak(platform: str, rounds: int, seed: int, mean_life: float, faults: list[str]) -> bool:
    """Kill *rounds* times while the platform has *faults*; whether all was well."""
    chance = random.Random(seed)
    options = [word for fault in faults for word in ("--fault", fault)]
    with tempfile.TemporaryDirectory() as folder, rig("--platform", platform, *options) as sandbox:
        target = sandbox.workspace()
        lives, writers = Lives(sandbox, target, Path(folder)), Writers(sandbox, target, seed)
        began = time.monotonic()
        process = lives.begin()
        sandbox.call("GET", f"/sandbox/workspaces/{target.id}/beats?count=1&timeout=30")
        writers.start()
        for number in range(rounds):
            time.sleep(min(chance.expovariate(1 / mean_life), 4 * mean_life) + 0.3)
            lives.end(process)
            process = lives.begin()
            if number % 50 == 49:
                print(
                    f"  {number + 1} kills, {len(writers.sent)} messages, {time.monotonic() - began:.0f} s", flush=True
                )
        writers.stop()
        answers = settle(sandbox, target, len(writers.sent))
        process.terminate()
        process.wait(40)
        lives.look()
        return report(platform, rounds, writers.sent, answers, lives)


def settle(sandbox: Rig, target: Workspace, count: int) -> list[dict[str, Any]]:
    """The answers once nothing more comes."""
    known, quiet_since = -1, time.monotonic()
    while time.monotonic() - quiet_since < PATIENCE:
        answers = sandbox.answers(target)
        if len(answers) != known:
            known, quiet_since = len(answers), time.monotonic()
        elif known >= count and time.monotonic() - quiet_since > 8:
            break
        time.sleep(0.5)
    return answers


def report(platform: str, rounds: int, sent: list[str], answers: list[dict[str, Any]], lives: Lives) -> bool:
    """Print the figures; whether nothing was lost or doubled, and nothing run without need."""
    said = {(answer["text"], answer["message_id"] or answer["row_id"]) for answer in answers}
    texts = collections.Counter(text for text, _ in said)
    runs, needless = lives.runs(), lives.needless()
    lost = [text for text in sent if not texts[text]]
    doubled = [text for text, count in texts.items() if count > 1]
    again = len(runs) - len({message_id for _, message_id in runs})
    print(
        f"soak {platform}: {rounds} kills, {len(sent)} messages, {len(lost)} lost, {len(doubled)} answered twice, "
        f"{len(needless)} run with an answer stored, {again} run again after a cut, attempts at most {lives.attempts}"
    )
    for name, texts_ in (("lost", lost), ("doubled", doubled), ("run without need", needless)):
        if texts_:
            print(f"  {name}: {', '.join(texts_[:20])}")
    return bool(sent) and not lost and not doubled and not needless and lives.attempts <= 1


def main() -> int:
    """Soak both generations."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="kills per platform generation")
    parser.add_argument("--platform", choices=["2026-05", "2026-08"], action="append")
    parser.add_argument("--life", type=float, default=MEAN_LIFE, help="mean seconds between kills")
    parser.add_argument(
        "--fault", action="append", default=["late-commits=1-5"], help="as of molecule sandbox; besides"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    given = parser.parse_args()
    print(f"seed {given.seed}")
    try:
        results = [
            soak(name, given.rounds, given.seed, given.life, given.fault)
            for name in given.platform or ["2026-05", "2026-08"]
        ]
    except subprocess.SubprocessError as exc:
        print(f"the soak itself failed: {exc}")
        return 2
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
