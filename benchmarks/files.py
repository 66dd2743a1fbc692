"""What the files of a chat cost."""

import threading
import time

import httpx

from benchmarks.rig import ADMIN, Rig, Workspace, connector, cpu_seconds, memory_mib, rig, wait_until

COUNT, SIZE, IN_ONE_REQUEST = 100, 1_000_000, 50


def files() -> None:
    """A hundred files of a megabyte, from the first upload until the last is on this machine and acknowledged."""
    for platform in ("2026-05", "2026-08"):
        with rig("--platform", platform) as sandbox:
            workspace = sandbox.workspace()
            with connector(sandbox, workspace) as process:
                began, cpu, highest = time.perf_counter(), cpu_seconds(process.pid), [0.0]
                uploading = threading.Thread(target=_upload, args=(sandbox, workspace))
                uploading.start()

                def all_here(pid: int = process.pid, sandbox: Rig = sandbox, highest: list[float] = highest) -> bool:
                    highest[0] = max(highest[0], memory_mib(pid))
                    return _acknowledged(sandbox) >= COUNT

                wait_until(all_here, 120)
                uploading.join()
                seconds = time.perf_counter() - began
                cpu = cpu_seconds(process.pid) - cpu
            cost = f"{cpu / COUNT * 1000:.1f} ms of processor each, at most {highest[0]:.0f} MiB"
            print(f"files {platform}: {COUNT} of {SIZE / 1e6:.0f} MB in {seconds:.1f} s, {cost}")


def _upload(sandbox: Rig, workspace: Workspace) -> None:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with httpx.Client(base_url=sandbox.url, headers=headers, timeout=120, trust_env=False) as client:
        for first in range(0, COUNT, IN_ONE_REQUEST):
            numbers = range(first, first + IN_ONE_REQUEST)
            form = [("files", (f"{number}.bin", bytes([number % 256]) * SIZE)) for number in numbers]
            client.post(f"/workspaces/{workspace.id}/chat/uploads", files=form).raise_for_status()


def _acknowledged(sandbox: Rig) -> int:
    counts = sandbox.call("GET", "/sandbox/requests")["requests"]
    return sum(int(entry[-1]) for entry in counts if str(entry[1]).endswith("/ack"))
