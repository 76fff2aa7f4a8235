"""The production Relay with other WireGuard timers: ``python -m lab.relay_agent --config F --timings JSON``.

The command ``wgvsock relay run`` has no such option, as the whitepaper's timers are part of the protocol. Tests of
rekeying under traffic would wait for minutes with them.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from wgvsock.cli.output import print_error
from wgvsock.cli.services import SignalHandlers, run_service
from wgvsock.errors import WgvsockError
from wgvsock.relay.config import RelayConfig, load
from wgvsock.relay.supervisor import RelaySupervisor
from wgvsock.telemetry import logs
from wgvsock.wireguard import Timings


def start(config: RelayConfig, timings: Timings) -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
    """The supervisor and its signals, as ``wgvsock relay run`` has them."""
    supervisor = RelaySupervisor(config, timings=timings)

    async def serve() -> int:
        await supervisor.run()
        return 0

    return serve(), {
        signal.SIGTERM: supervisor.stop,
        signal.SIGINT: supervisor.stop,
        signal.SIGUSR1: supervisor.reattest,
        signal.SIGUSR2: lambda: supervisor.stop(keep_flows=True),
    }


def main(argv: Sequence[str]) -> int:
    """Run the Relay until it is stopped."""
    parser = argparse.ArgumentParser(prog="lab.relay_agent")
    parser.add_argument("--config", required=True)
    parser.add_argument("--timings", type=json.loads, required=True, metavar="JSON")
    arguments = parser.parse_args(argv)
    try:
        config = load(arguments.config)
        logs.configure(config.log_level)
        return run_service(lambda: start(config, Timings(**arguments.timings)))
    except WgvsockError as error:
        print_error(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
