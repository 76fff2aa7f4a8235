"""``wgvsock relay run|reattest|reload|replace``: the relay's production entry point, and commands to a running one."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from wgvsock.cli.relay_orders import add_orders
from wgvsock.cli.services import SignalHandlers, run_service
from wgvsock.relay.config import DEFAULT_PATH, RelayConfig, load
from wgvsock.relay.errors import ReplacementError
from wgvsock.relay.spec import ONLY
from wgvsock.runtime.process import allow_descriptors
from wgvsock.telemetry import logs

if TYPE_CHECKING:
    from wgvsock.wireguard import Timings


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``relay`` to the commands of ``wgvsock``."""
    relay = commands.add_parser("relay", help="run the relay, in the pod or on the parent instance")
    verbs = relay.add_subparsers(dest="verb", required=True, metavar="run|reattest|reload|replace")
    run_parser = verbs.add_parser(
        "run",
        help="attest and provision enclaves, and carry their packets",
        description="SIGTERM and SIGINT: stop and undo all changes. SIGHUP: reload. SIGUSR1: attest again now. "
        "SIGUSR2: stop for a restart, but keep the enclaves' connections.",
    )
    run_parser.set_defaults(run=_run)
    replace_parser = verbs.add_parser(
        "replace",
        help="replace an enclave with one that runs another image",
        description="The relay launches and attests the new enclave next to the old one. New connections go to it once "
        "its ports answer. The old one is terminated when its connections have ended. `wgvsock status` shows the "
        "progress.",
    )
    replace_parser.add_argument("enclave", nargs="?", default=ONLY, help="its name; default: the only one")
    replace_parser.add_argument("--image", metavar="FILE", required=True, help="the new enclave image file")
    replace_parser.set_defaults(run=_replace)
    add_orders(verbs)
    for parser in verbs.choices.values():
        parser.add_argument("-c", "--config", metavar="FILE", help=f"default: {DEFAULT_PATH}")


def _run(args: argparse.Namespace) -> int:
    path = args.config or DEFAULT_PATH
    return run(path)


def run(path: str, timings: Timings | None = None) -> int:
    """Run the relay of a configuration.

    Args:
        path: The configuration file.
        timings: The WireGuard core's limits. Only tests change them.

    Returns:
        The exit status.

    Raises:
        WgvsockError: The relay cannot start, or cannot continue.
    """
    config = load(path)
    logs.configure(config.log_level)
    allow_descriptors()
    return run_service(lambda: _start(config, path, timings), busy_poll_us=config.interface.busy_poll_us)


def _start(config: RelayConfig, path: str, timings: Timings | None) -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
    from wgvsock.machine.relay import LinuxRelayMachine
    from wgvsock.relay.output import LineWriter
    from wgvsock.relay.service import RelayService

    writer = LineWriter()
    service = RelayService(config, LinuxRelayMachine(), reload_config=lambda: load(path), timings=timings, show=writer)

    async def serve() -> int:
        try:
            return await service.run()
        finally:
            writer.close()

    return serve(), {
        signal.SIGTERM: service.stop,
        signal.SIGINT: service.stop,
        signal.SIGHUP: service.reload,
        signal.SIGUSR1: service.reattest,
        signal.SIGUSR2: lambda: service.stop(keep_flows=True),
    }


def _replace(args: argparse.Namespace) -> int:
    from wgvsock.cli.status import ask, socket_path

    query = urlencode({"enclave": args.enclave, "image": args.image})
    answer = ask(socket_path("relay", args.config), "POST", f"/replace?{query}")
    if error := answer.get("error"):
        raise ReplacementError(str(error.get("what")), why=str(error.get("why")), fix=str(answer.get("fix")))
    return 0
