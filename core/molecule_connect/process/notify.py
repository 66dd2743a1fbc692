"""Notifications to the service manager, by the sd_notify protocol of systemd.

No library: a notification is one datagram of ``NAME=value`` lines, which is ten lines of code. The libraries for it
need libsystemd and a compiler, or leave the variables to child processes, block the event loop, or don't know reloads.
"""

import collections
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Self

# Notifications kept while the service manager doesn't read.
MOST_UNSENT = 64


class ServiceManager:
    """Sends notifications. Without a service manager, nothing is sent.

    Args:
        address: The socket: a path, or ``@name`` in the abstract namespace. Other forms, such as vsock, are ignored.
        watchdog: The seconds after which the manager ends a process that doesn't call ``alive``; None for no watchdog.
    """

    def __init__(self, address: str = "", *, watchdog: float | None = None) -> None:
        self.is_present = address[:1] in ("/", "@")
        self.watchdog = watchdog if self.is_present else None
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._unsent: collections.deque[bytes] = collections.deque(maxlen=MOST_UNSENT)

    @classmethod
    def take_from(cls, environ: MutableMapping[str, str]) -> Self:
        """The manager that *environ* names. Its variables are removed, so that child processes don't report to it."""
        address, usec, pid = (environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        is_watched = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        return cls(address, watchdog=int(usec) / 1e6 if is_watched else None)

    def ready(self, status: str = "") -> None:
        """The start, or a reload, is complete."""
        self._send("READY=1", *([f"STATUS={status}"] if status else []))

    def status(self, text: str) -> None:
        """Show *text*, one line, in the manager's description of the service."""
        self._send(f"STATUS={text}")

    def reloading(self) -> None:
        """A reload begins. ``ready`` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str, *, seconds: float) -> None:
        """The process is ending, which may take *seconds*."""
        self._send("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def extend(self, seconds: float) -> None:
        """The start may take *seconds* more."""
        self._send(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}", keep=False)

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1", keep=False)

    def _send(self, *lines: str, keep: bool = True) -> None:
        """Send a notification. If the manager doesn't read and *keep* is set, it is sent before the next one."""
        if not self.is_present:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines).encode()
        if keep:
            self._unsent.append(message)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                while self._unsent:
                    sender.sendto(self._unsent[0], self._address)
                    self._unsent.popleft()
                if not keep:
                    sender.sendto(message, self._address)
        except BlockingIOError:
            return
        except OSError:  # the manager is gone
            self._unsent.clear()
