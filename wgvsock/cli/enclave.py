"""``wgvsock enclave run [-c FILE] [-- app args…]``: the production entry point inside the enclave.

/dev/nsm is the only security module that it uses. No mode, flag or variable selects another.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from wgvsock.cli.services import SignalHandlers, run_service
from wgvsock.devices.base import SecureModule
from wgvsock.enclave.config import DEFAULT_PATH, EnclaveConfig, load
from wgvsock.telemetry import logs


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``enclave`` to the commands of ``wgvsock``."""
    enclave = commands.add_parser("enclave", help="run the agent inside the enclave")
    verbs = enclave.add_subparsers(dest="verb", required=True, metavar="run")
    run_parser = verbs.add_parser(
        "run",
        help="answer the relay, and run the application once the link is up",
        description="SIGTERM and SIGINT end the application, then the agent. Other signals go to the application.",
    )
    run_parser.add_argument(
        "-c", "--config", metavar="FILE", help=f"default: {DEFAULT_PATH} if it exists, otherwise the default settings"
    )
    run_parser.add_argument("application", nargs=argparse.REMAINDER, metavar="-- APP ARGS", help="the application")
    run_parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from wgvsock.devices.nsm import NsmDevice

    config = read_config(args.config)
    logs.configure(config.log_level)
    command = args.application[1:] if args.application[:1] == ["--"] else args.application
    module = NsmDevice()
    try:
        return run_service(lambda: _start(config, module, command), busy_poll_us=config.busy_poll_us)
    finally:
        module.close()


def read_config(path: str | None) -> EnclaveConfig:
    """Read the named file or the default one. If the default one is missing, use the default settings.

    Raises:
        ConfigurationError: See `wgvsock.enclave.config.load`.
    """
    if path is None and not Path(DEFAULT_PATH).exists():
        return EnclaveConfig()
    return load(path or DEFAULT_PATH)


def _start(
    config: EnclaveConfig, module: SecureModule, command: Sequence[str]
) -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
    from wgvsock.enclave.application.process import FORWARDED_SIGNALS
    from wgvsock.enclave.supervisor import EnclaveSupervisor
    from wgvsock.machine.enclave import LinuxEnclaveMachine

    supervisor = EnclaveSupervisor(config, LinuxEnclaveMachine(), module)
    forwarded = {number: lambda number=number: supervisor.forward(number) for number in FORWARDED_SIGNALS}
    stops = {signal.SIGTERM: supervisor.stop, signal.SIGINT: supervisor.stop}
    return supervisor.run(command), {**forwarded, **stops}
