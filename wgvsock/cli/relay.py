"""``wgvsock relay run|reattest|reload``: the relay's production entry point, and orders for a running one."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from wgvsock.cli.services import SignalHandlers, run_service
from wgvsock.relay.config import DEFAULT_PATH, RelayConfig, load
from wgvsock.telemetry import logs


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``relay`` to the commands of ``wgvsock``."""
    relay = commands.add_parser("relay", help="run the relay, in the pod or on the parent instance")
    verbs = relay.add_subparsers(dest="verb", required=True, metavar="run|reattest|reload")
    run_parser = verbs.add_parser(
        "run",
        help="attest and provision the enclave, carry its packets",
        description="SIGTERM, SIGINT: stop and take everything back. SIGHUP: reload. SIGUSR1: attest again now. "
        "SIGUSR2: stop for a restart, with the connections of the enclave kept.",
    )
    run_parser.set_defaults(run=_run)
    for verb, about in (("reattest", "attest the enclave again now"), ("reload", "read the configuration again")):
        verbs.add_parser(verb, help=about).set_defaults(run=_order)
    for parser in verbs.choices.values():
        parser.add_argument("-c", "--config", default=DEFAULT_PATH, metavar="FILE", help="default: %(default)s")


def _run(args: argparse.Namespace) -> int:
    config = load(args.config)
    logs.configure(config.log_level)
    return run_service(lambda: _start(config, args.config))


def _start(config: RelayConfig, path: str) -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
    from wgvsock.relay.launcher import Launcher
    from wgvsock.relay.supervisor import RelaySupervisor
    from wgvsock.system.nitro_cli import NitroCli

    launch = config.launch
    launcher = Launcher(launch, config.enclave.cid, NitroCli(launch.nitro_cli)) if launch is not None else None
    supervisor = RelaySupervisor(config, reload_config=lambda: load(path), launcher=launcher)

    async def serve() -> int:
        await supervisor.run()
        return 0

    return serve(), {
        signal.SIGTERM: supervisor.stop,
        signal.SIGINT: supervisor.stop,
        signal.SIGHUP: supervisor.reload,
        signal.SIGUSR1: supervisor.reattest,
        signal.SIGUSR2: lambda: supervisor.stop(keep_flows=True),
    }


def _order(args: argparse.Namespace) -> int:
    from wgvsock.cli.status import ask

    config = load(args.config)
    ask(str(Path(config.runtime_directory) / f"{config.name}.sock"), "POST", f"/{args.verb}")
    return 0
