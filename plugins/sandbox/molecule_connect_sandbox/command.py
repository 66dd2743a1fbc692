"""``molecule sandbox``."""

import shlex
from collections.abc import Iterable

import click

from molecule_connect import ConfigError, OptionError
from molecule_connect_sandbox.faults import KINDS
from molecule_connect_sandbox.generation import AUGUST, GENERATIONS

EXAMPLES = """\b
Examples:
  molecule sandbox                                     chat with the mock backend
  molecule sandbox --backend exec --backend-opt cmd='tr a-z A-Z'
  echo hello | molecule sandbox                        one message a line, answers on standard output
  molecule sandbox --serve --port 8080                 a platform for connectors of your own
  molecule sandbox --serve --fault late-commits --fault cut-after=chance=0.1,path=/notify
"""


def fault_help() -> str:
    """Every fault, its value and what it does."""
    lines = []
    for kind in KINDS.values():
        value = f"={kind.argument}" if kind.argument else ""
        default = f" [{kind.default}]" if kind.default else ""
        lines.append(f"  {kind.name + value:24}{kind.help}{default}")
    return "\b\nFaults, each with its default value:\n" + "\n".join(lines)


def parse_backend_options(texts: Iterable[str]) -> dict[str, str | list[str]]:
    """``K=V`` each; a repeated key is a list.

    Raises:
        OptionError: There is no ``=``, or nothing before it.
    """
    options: dict[str, str | list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise OptionError(f"--backend-opt {text!r} is not KEY=VALUE", hint="write it as --backend-opt key=value")
        known = options.get(key)
        options[key] = value if known is None else [*([known] if isinstance(known, str) else known), value]
    return options


def refuse_a_backend(context: click.Context) -> None:
    """Serving answers nothing itself, so a backend beside ``--serve`` is a misunderstanding.

    Raises:
        OptionError: One was given.
    """
    given = [f"--{name.replace('_', '-')}" for name in ("backend", "backend_opts") if _typed(context, name)]
    if given:
        option = given[0].removesuffix("s")
        words = ["--backend", context.params["backend"]]
        for text in context.params["backend_opts"]:
            words += ["--backend-opt", text]
        raise OptionError(
            f"{option} does nothing beside --serve: the platform waits for a connector of its own",
            hint=f"leave it out, and run in another terminal: molecule connect {shlex.join(words)}",
        )


def _typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


@click.command(
    help="Run a local Molecule platform: chat with a backend, or serve connectors.",
    epilog=f"{EXAMPLES}\n{fault_help()}\n\nA fault may be narrowed: NAME=VALUE,path=TEXT,method=M,chance=0..1,times=N.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--serve", is_flag=True, help="Serve until stopped; the first line is the address, then what to export.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Where --serve listens; 0 is where the last run with --store did, else a free port.",
)
@click.option(
    "--platform",
    type=click.Choice(list(GENERATIONS)),
    default=AUGUST.name,
    show_default=True,
    help="Whose rules to keep.",
)
@click.option("--admin-token", metavar="T", help="The administrator's token; one is made if there is none.")
@click.option("--store", type=click.Path(dir_okay=False), metavar="FILE", help="Keep everything here; else in memory.")
@click.option("--fault", "faults", multiple=True, metavar="NAME[=VALUE]", help="Do something wrong; repeatable.")
@click.option(
    "--rate-limit",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Requests a minute; 0 is without limit, the real platform has 600.",
)
@click.option("--seed", type=int, default=0, metavar="N", help="Of the chance in the faults.")
@click.option("--backend", default="mock", show_default=True, metavar="NAME", help="Who answers in the chat.")
@click.option(
    "--backend-opt", "backend_opts", multiple=True, metavar="K=V", help="An option of the backend; repeatable."
)
def sandbox(
    serve: bool,
    port: int,
    platform: str,
    admin_token: str | None,
    store: str | None,
    faults: tuple[str, ...],
    rate_limit: int,
    seed: int,
    backend: str,
    backend_opts: tuple[str, ...],
) -> None:
    """Chat, or serve. What is heavy is imported here: ``molecule --help`` loads this module."""
    import asyncio

    from molecule_connect_sandbox.chat import run_chat
    from molecule_connect_sandbox.options import SandboxOptions
    from molecule_connect_sandbox.serving import run_server
    from molecule_connect_sandbox.session import ChatOptions
    from molecule_connect_sandbox.store import kept_token

    if admin_token is not None and not admin_token.strip():
        raise ConfigError("--admin-token is empty", hint="give a token, or leave --admin-token out")
    control_token = admin_token or kept_token(store)
    if not GENERATIONS[platform].anonymous_people:
        admin_token = control_token
    options = SandboxOptions(
        platform=platform,
        admin_token=admin_token,
        control_token=control_token,
        store=store,
        faults=faults,
        rate_limit=rate_limit,
        seed=seed,
    )
    if serve:
        refuse_a_backend(click.get_current_context())
        asyncio.run(run_server(options, port))
        return
    chosen = ChatOptions(backend=backend, backend_options=parse_backend_options(backend_opts), sandbox=options)
    if not asyncio.run(run_chat(chosen)):
        raise SystemExit(1)
