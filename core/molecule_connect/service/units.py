"""The files that define a service: a unit of systemd, and an agent of launchd."""

import json
import plistlib
import re
from collections.abc import Mapping
from typing import Any

from molecule_connect.errors import ConfigError
from molecule_connect.service.plan import ServicePlan

# The first line of our units. A file without it is never replaced or removed.
MARK = "# Written by 'molecule service install', which replaces it. Change it with: systemctl{user} edit {name}"
_MARK_START = MARK.partition(",")[0]
_FACTS = "# molecule-connect: "
# The first version of systemd that knows Type=notify-reload.
NOTIFY_RELOAD = 253
# Exit codes that need a person: a wrong setting, a deleted workspace, another process that serves it.
NOT_RESTARTED = (2, 4, 5)
WATCHDOG_SECONDS = 120
START_SECONDS = 300
RESTART_SECONDS = 15
_LEAST_STOP_SECONDS = 90.0
_PLAIN = re.compile(r"[A-Za-z0-9_@+:,./=~-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_HARDENING = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
UMask=0077"""


def unit_text(plan: ServicePlan, version: int) -> str:
    """The unit of systemd.

    Args:
        version: The version of systemd; 0 if unknown.
    """
    reload = [*plan.molecule, "service", "reload", "--pid", "$MAINPID", "--state-dir", str(plan.state_dir)]
    mark = MARK.format(user="" if plan.system else " --user", name=plan.name)
    facts = json.dumps({"command": plan.command, "state_dir": str(plan.state_dir)})
    lines = [
        mark,
        f"{_FACTS}{facts}",
        "[Unit]",
        f"Description=molecule-connect ({plan.name})",
        *(["Wants=network-online.target", "After=network-online.target"] if plan.system else []),
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        f"Type={'notify-reload' if version >= NOTIFY_RELOAD else 'notify'}",
        "NotifyAccess=main",
        f"ExecStart={_command(plan.command)}",
        f"ExecReload={_command(reload)}",
        f"WatchdogSec={WATCHDOG_SECONDS}",
        f"TimeoutStartSec={START_SECONDS}",
        f"TimeoutStopSec={max(_LEAST_STOP_SECONDS, plan.stop_seconds):.0f}",
        "KillMode=mixed",
        "Restart=on-failure",
        f"RestartSec={RESTART_SECONDS}",
        f"RestartPreventExitStatus={' '.join(map(str, NOT_RESTARTED))}",
        "OOMPolicy=continue",
        f"SyslogIdentifier={plan.name}",
        f"WorkingDirectory=-{_folder(str(plan.cwd))}",
        *(f"Environment={_quote(f'{name}={value}')}" for name, value in plan.environment.items()),
    ]
    if plan.system:
        folders = " ".join([plan.name, *(f"{plan.name}/{folder.name}" for folder in (plan.state_dir, plan.cwd))])
        lines += [f"User={plan.name}", f"Group={plan.name}", f"StateDirectory={folders}", "StateDirectoryMode=0700"]
        lines += _HARDENING.splitlines()
    lines += ["", "[Install]", f"WantedBy={'multi-user' if plan.system else 'default'}.target", ""]
    return "\n".join(lines)


def is_ours(text: str) -> bool:
    """Whether a unit was written by ``unit_text``."""
    return text.startswith(_MARK_START)


def facts_of(text: str) -> Mapping[str, Any]:
    """``command`` and ``state_dir`` of a unit that ``unit_text`` wrote; empty if they were removed."""
    for line in text.splitlines():
        if line.startswith(_FACTS):
            try:
                found = json.loads(line.removeprefix(_FACTS))
            except ValueError:
                return {}
            return found if isinstance(found, dict) else {}
    return {}


def plist(plan: ServicePlan, log: str) -> bytes:
    """The agent of launchd. *log* is the file for its output."""
    _check_text([*plan.command, str(plan.cwd), log, *plan.environment.values()])
    document = {
        "Label": plan.name,
        "ProgramArguments": plan.command,
        "EnvironmentVariables": dict(plan.environment),
        "WorkingDirectory": str(plan.cwd),
        "RunAtLoad": True,
        # launchd can't tell exit codes apart: it also restarts after errors that need a person.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 2 * RESTART_SECONDS,
        "ExitTimeOut": int(max(_LEAST_STOP_SECONDS, plan.stop_seconds)),
        "StandardOutPath": log,
        "StandardErrorPath": log,
        "Umask": 0o077,
    }
    return plistlib.dumps(document, sort_keys=False)


def _command(words: list[str]) -> str:
    """A command line of a unit. Only ``$MAINPID`` is a variable."""
    _check_text(words)
    return " ".join(word if word == "$MAINPID" else _quote(word.replace("$", "$$")) for word in words)


def _quote(word: str) -> str:
    """A word of a unit, with its characters taken literally."""
    _check_text([word])
    word = _escape_specifiers(word)
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _folder(path: str) -> str:
    """A folder that is the rest of a line. At its end, a backslash or a space would have another meaning."""
    _check_text([path])
    return _escape_specifiers(path) + ("/" if path[-1:] in ("\\", " ") else "")


def _escape_specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _check_text(words: list[str]) -> None:
    for word in words:
        if _CONTROL.search(word):
            raise ConfigError(f"{word!r} has a control character", hint="remove it from the name or the path")
