"""The measurements."""

import asyncio
import contextlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from benchmarks.rig import (
    TICKS,
    Rig,
    Workspace,
    connector,
    cpu_seconds,
    memory_mib,
    rig,
    start_list,
    wait_until,
    write_list,
)
from molecule_connect import hookimpl
from molecule_connect.app import serve
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.models import Request, Response
from molecule_connect_postgres import PostgresMirror
from molecule_connect_postgres.testing import Cluster

PLATFORMS = ("2026-05", "2026-08")
CONVERSATIONS = 8
AT_ONCE = 2000
LATENCIES = 300
IDLE_SECONDS = 90.0
FLEETS = (1, 50, 500)
CAPACITY, MACHINES = 1000, 3
# Messages per second, and for how long.
LOAD, LOAD_SECONDS = 100, 30


def startup() -> None:
    """How long a command takes that does nothing, and how long until a workspace is online."""
    command = [sys.executable, "-m", "molecule_connect", "--help"]
    times = []
    for _ in range(11):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append((time.perf_counter() - began) * 1000)
    print(f"startup: --help {statistics.median(times[1:]):.0f} ms")
    with rig() as sandbox:
        times = []
        for _ in range(5):
            workspace = sandbox.workspace()
            began = time.perf_counter()
            with connector(sandbox, workspace):
                times.append((time.perf_counter() - began) * 1000)
        print(f"startup: connect to first heartbeat {statistics.median(times):.0f} ms")


def _conversations(sandbox: Rig) -> tuple[Workspace, list[Workspace]]:
    workspace = sandbox.workspace()
    return workspace, [sandbox.workspace(workspace) for _ in range(CONVERSATIONS)]


def latency(**environment: str) -> None:
    """From a row that can be read to the answer that the platform has, one message at a time, with the stream."""
    for platform in PLATFORMS:
        with rig("--platform", platform) as sandbox:
            workspace, peers = _conversations(sandbox)
            with connector(sandbox, workspace, **environment) as process:
                for number in range(20):
                    sandbox.say(workspace, f"warm {number}", peers[number % CONVERSATIONS])
                sandbox.answers(workspace, 20)
                for number in range(LATENCIES):
                    sandbox.say(workspace, f"message {number}", peers[number % CONVERSATIONS])
                    wait_until(lambda number=number: sandbox.sent() >= 2 * (21 + number), 30)
                sandbox.answers(workspace, 20 + LATENCIES)
                found = _latencies(sandbox, workspace)
                memory = memory_mib(process.pid)
            times = sorted(found[20:])
            p50, p99 = statistics.median(times), times[int(len(times) * 0.99) - 1]
            print(f"latency {platform}: visible to reply p50 {p50:.1f} ms, p99 {p99:.1f} ms; {memory:.0f} MiB")


def throughput(**environment: str) -> None:
    """Many messages that become readable in one moment."""
    for platform in PLATFORMS:
        with rig("--platform", platform) as sandbox:
            workspace, peers = _conversations(sandbox)
            with connector(sandbox, workspace, **environment) as process:
                sandbox.say(workspace, "warm", peers[0])
                sandbox.answers(workspace, 1)
                before, cpu = sandbox.sent(), cpu_seconds(process.pid)
                sandbox.write_at_once(workspace, peers, AT_ONCE)
                seconds = wait_until(lambda before=before: sandbox.sent() - before >= AT_ONCE, 120)
                cpu = cpu_seconds(process.pid) - cpu
                memory = memory_mib(process.pid)
            cost = f"{cpu / AT_ONCE * 1000:.2f} ms of processor each; {memory:.0f} MiB"
            what = f"({AT_ONCE} at once, {CONVERSATIONS} peers)"
            print(f"throughput {platform}: {AT_ONCE / seconds:.0f} messages/s {what}, {cost}")


def mirror() -> None:
    """Latency and throughput without and with a copy of the journal in PostgreSQL on the same machine."""
    with Cluster.running(settings={"fsync": "on"}) as cluster:
        url = cluster.database()
        asyncio.run(PostgresMirror(url).install())
        for measure in (latency, throughput):
            print("without a mirror:")
            measure()
            print("with a mirror:")
            measure(MOLECULE_JOURNAL_URL=url)


def idle() -> None:
    """What a connector costs that has nothing to do."""
    with rig() as sandbox:
        workspace = sandbox.workspace()
        with connector(sandbox, workspace) as process:
            time.sleep(8)
            before, cpu = sandbox.requests(), cpu_seconds(process.pid)
            time.sleep(IDLE_SECONDS)
            requests, cpu = sandbox.requests() - before, cpu_seconds(process.pid) - cpu
            hours = IDLE_SECONDS / 3600
            print(
                f"idle: {requests / hours:.0f} requests/h, {cpu / hours:.1f} s of processor/h, "
                f"{memory_mib(process.pid):.0f} MiB (over {IDLE_SECONDS:.0f} s)"
            )


class _Echo:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text(request.text)


def fleet() -> None:
    """Many workspaces in one process."""
    for count in FLEETS:
        with rig() as sandbox:
            workspaces = [sandbox.workspace() for _ in range(count)]
            program = [sys.executable, "-m", "benchmarks.fleet", sandbox.url]
            process = subprocess.Popen(program, stdin=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
            assert process.stdin is not None
            process.stdin.write("".join(f"{workspace.id} {workspace.token}\n" for workspace in workspaces))
            process.stdin.close()
            for workspace in workspaces:
                sandbox.call("GET", f"/sandbox/workspaces/{workspace.id}/beats?count=1&timeout=60")
            time.sleep(10 + count / 10)
            before, cpu = sandbox.requests(), cpu_seconds(process.pid)
            time.sleep(30)
            requests, cpu = sandbox.requests() - before, cpu_seconds(process.pid) - cpu
            files, memory = len(list(Path(f"/proc/{process.pid}/fd").iterdir())), memory_mib(process.pid)
            cost = f"{memory:.0f} MiB, {cpu / 30 * 100:.1f} % of a core, {files} files, {requests * 2} requests/min"
            print(f"fleet of {count}: {cost}")
            process.terminate()
            process.wait(60)


def capacity() -> None:
    """``molecule connect`` with 1,000 workspaces of a list: start, memory, idleness, and latency under load."""
    with rig() as sandbox, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        workspaces = [sandbox.workspace() for _ in range(CAPACITY)]
        config = write_list(sandbox, workspaces, Path(folder))
        began = time.perf_counter()
        process = start_list(config, Path(folder, "state"))
        for one in workspaces:
            sandbox.call("GET", f"/sandbox/workspaces/{one.id}/beats?count=1&timeout=120")
        started, cpu = time.perf_counter() - began, cpu_seconds(process.pid)
        print(f"capacity: {CAPACITY} registered in {started:.1f} s, {cpu:.1f} s of processor", flush=True)
        time.sleep(60)
        before, cpu = sandbox.requests(), cpu_seconds(process.pid)
        time.sleep(60)
        requests, cpu = sandbox.requests() - before, cpu_seconds(process.pid) - cpu
        files, memory = len(list(Path(f"/proc/{process.pid}/fd").iterdir())), memory_mib(process.pid)
        cost = f"{memory:.0f} MiB, {cpu / 60 * 100:.1f} % of a core, {files} files, {requests} requests/min"
        print(f"capacity: idle {cost}", flush=True)
        count, sent = LOAD_SECONDS * LOAD, sandbox.sent("/notify")
        cpu, began = cpu_seconds(process.pid), time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            for number in range(count):
                time.sleep(max(0.0, began + number / LOAD - time.perf_counter()))
                pool.submit(sandbox.say, workspaces[number * 7 % CAPACITY], f"message {number}", None)
        wait_until(lambda: sandbox.sent("/notify") - sent >= count, 60)
        cpu = cpu_seconds(process.pid) - cpu
        times = sorted(milliseconds for one in workspaces for milliseconds in _latencies_of_people(sandbox, one))
        p50, p99 = statistics.median(times), times[int(len(times) * 0.99) - 1]
        load = f"{LOAD} messages/s: visible to reply p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        print(f"capacity: {load}, {cpu / count * 1000:.2f} ms of processor each, {memory_mib(process.pid):.0f} MiB")
        process.terminate()
        process.wait(120)


def machines() -> None:
    """Processes that share the workspaces of a list: start, memory, idleness, and what becomes of them after a kill."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster.running(settings={"fsync": "on"}))
        sandbox = stack.enter_context(rig())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        url = cluster.database()
        asyncio.run(PostgresMirror(url).install())
        workspaces = [sandbox.workspace() for _ in range(CAPACITY)]
        config = write_list(sandbox, workspaces, folder)
        began = time.perf_counter()
        processes = [start_list(config, folder / f"state-{n}", MOLECULE_JOURNAL_URL=url) for n in range(MACHINES)]
        for process in processes:
            stack.callback(process.wait, 120)
            stack.callback(process.terminate)
        for one in workspaces:
            sandbox.call("GET", f"/sandbox/workspaces/{one.id}/beats?count=1&timeout=120")
        print(f"machines: {CAPACITY} served by {MACHINES} in {time.perf_counter() - began:.1f} s", flush=True)
        fair = CAPACITY // MACHINES
        wait_until(lambda: all(count >= fair for count in _shares(url, processes)), 300)
        print(f"machines: shares equal after {time.perf_counter() - began:.1f} s", flush=True)
        time.sleep(60)
        of_server = _cpu_of_server(cluster)
        cpu = [cpu_seconds(process.pid) for process in processes]
        time.sleep(60)
        each = [(cpu_seconds(process.pid) - before) / 60 for process, before in zip(processes, cpu, strict=True)]
        memory = ", ".join(f"{memory_mib(process.pid):.0f}" for process in processes)
        server = (_cpu_of_server(cluster) - of_server) / 60
        cost = f"{memory} MiB, {statistics.mean(each):.1%} of a core each, PostgreSQL {server:.1%}"
        print(f"machines: idle {cost}", flush=True)
        killed = processes[0]
        killed.kill()
        killed.wait()
        began = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda one: sandbox.say(one, "who is there", None), workspaces))
        for one in workspaces:
            sandbox.answers(one, 1)
        seconds = time.perf_counter() - began
        wait_until(lambda: sum(_shares(url, processes)) == CAPACITY, 60)
        counts = Counter(len(sandbox.answers(one)) for one in workspaces)
        print(f"machines: one killed, all {CAPACITY} answered after {seconds:.1f} s, answers of each: {dict(counts)}")


def _shares(url: str, processes: "Sequence[subprocess.Popen[bytes]]") -> list[int]:
    """How many workspaces each process serves."""

    async def look() -> Counter[int]:
        mirror = PostgresMirror(url)
        try:
            return Counter(one.holder.pid for one in await mirror.overview() if one.holder and one.is_alive)
        finally:
            await mirror.aclose()

    time.sleep(1)
    counts = asyncio.run(look())
    return [counts[process.pid] for process in processes]


def _cpu_of_server(cluster: Cluster) -> float:
    """Processor time of all processes of the database, running or ended."""
    pid = int((cluster.data / "postmaster.pid").read_text().split()[0])
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    running = sum(cpu_seconds(int(child)) for child in children)
    return (int(fields[13]) + int(fields[14])) / TICKS + cpu_seconds(pid) + running


def _latencies(sandbox: Rig, workspace: Workspace) -> list[float]:
    """From each readable row to its answer, in milliseconds."""
    rows = sandbox.call("GET", f"/sandbox/workspaces/{workspace.id}/rows")
    asked = {
        row["request_body"]["params"]["message"]["messageId"]: _moment(row["created_at"])
        for row in rows
        if row["method"] == "message/send"
    }
    return [
        (_moment(answer["created_at"]) - asked[answer["message"]["metadata"]["molecule"]["in_reply_to"]]) * 1000
        for answer in sandbox.answers(workspace)
    ]


def _latencies_of_people(sandbox: Rig, workspace: Workspace) -> list[float]:
    """From each readable row of a person to its answer, in milliseconds. Answers are in the order of the messages."""
    rows = sandbox.call("GET", f"/sandbox/workspaces/{workspace.id}/rows")
    asked = sorted(_moment(row["created_at"]) for row in rows if row["method"] == "message/send")
    answered = sorted(_moment(answer["created_at"]) for answer in sandbox.answers(workspace))
    return [(answer - message) * 1000 for message, answer in zip(asked, answered, strict=True)]


def serve_fleet(url: str) -> None:
    """Serve the workspaces that stdin names, ``id token`` a line, until SIGTERM."""
    pairs = [line.split() for line in sys.stdin if line.strip()]
    settings = [
        WorkspaceSettings(workspace_id=workspace_id, token=token, api_url=url, backend=_Echo())
        for workspace_id, token in pairs
    ]

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        with tempfile.TemporaryDirectory() as folder:
            await serve(settings, state_dir=Path(folder), listener=lambda event: None, stop=stop)

    asyncio.run(run())


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
