"""The Enclave with two additions to the production command: the laboratory's signer, and other WireGuard timers.

``python -m lab.programs.enclave --config F [--secure-module SOCKET] [--entropy-log F] [--timings JSON] [-- app args…]``

Without a socket the security module is /dev/nsm, as in production. Only here does a fake security module meet the
production Enclave, and this module is not in the wheel: the production command has no flag, variable or import that
could do it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from lab.nsm.client import UnixSecureModule
from wgvsock.cli.output import print_error
from wgvsock.cli.services import SignalHandlers, run_service
from wgvsock.devices.nsm import NsmDevice
from wgvsock.enclave.application.process import FORWARDED_SIGNALS
from wgvsock.enclave.config import EnclaveConfig, load
from wgvsock.enclave.supervisor import EnclaveSupervisor
from wgvsock.errors import WgvsockError
from wgvsock.machine.base import EnclaveMachine
from wgvsock.machine.enclave import LinuxEnclaveMachine
from wgvsock.telemetry import logs
from wgvsock.wireguard import Timings

CLOCK_AHEAD: Final = "WGVSOCK_LAB_CLOCK_AHEAD"
"""Environment variable: seconds that the agent's wall clock is ahead, because a namespace has no clock."""


class RecordingMachine(LinuxEnclaveMachine):
    """The machine, with a record of each draw of entropy that can be a private key (`lab.watch.opener` reads it).

    Args:
        stream: Receives the record.
        ahead: Seconds that its wall clock is ahead of this machine's.
    """

    def __init__(self, stream: BinaryIO, ahead: float = 0.0) -> None:
        self._stream = stream
        self._ahead = int(ahead * 1e9)

    def wall_clock(self) -> int:
        """See `Machine.wall_clock`."""
        return super().wall_clock() + self._ahead

    def random(self, size: int) -> bytes:
        """Draw `size` bytes."""
        drawn = super().random(size)
        if size == 32:
            self._stream.write(drawn.hex().encode() + b"\n")
            self._stream.flush()
        return drawn


def start(
    config: EnclaveConfig, machine: EnclaveMachine, command: Sequence[str], secure_module: str | None, timings: Timings
) -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
    """Run the supervisor with the signals of ``wgvsock enclave run``.

    If the module is a socket of the signer, it does not seed the kernel's generator, which is this machine's and not an
    enclave's.
    """
    if secure_module is None:
        supervisor = EnclaveSupervisor(config, machine, NsmDevice(), timings=timings)
    else:
        supervisor = EnclaveSupervisor(config, machine, UnixSecureModule(secure_module), seed=None, timings=timings)
    forwarded = {number: lambda number=number: supervisor.forward(number) for number in FORWARDED_SIGNALS}
    stops = {signal.SIGTERM: supervisor.stop, signal.SIGINT: supervisor.stop}
    return supervisor.run(command), {**forwarded, **stops}


def main(argv: Sequence[str]) -> int:
    """Run the agent until it is stopped or its application ends."""
    parser = argparse.ArgumentParser(prog="lab.programs.enclave")
    parser.add_argument("--config", required=True)
    parser.add_argument("--secure-module", metavar="SOCKET", help="default: /dev/nsm")
    parser.add_argument("--entropy-log", type=Path, default=Path(os.devnull))
    parser.add_argument("--timings", type=json.loads, default={}, metavar="JSON")
    parser.add_argument("application", nargs="*")
    arguments = parser.parse_args(argv)
    try:
        config = load(arguments.config)
        logs.configure(config.log_level)
        with arguments.entropy_log.open("ab", buffering=0) as stream:
            machine = RecordingMachine(stream, float(os.environ.get(CLOCK_AHEAD, "0")))
            timings = Timings(**arguments.timings)
            return run_service(lambda: start(config, machine, arguments.application, arguments.secure_module, timings))
    except WgvsockError as error:
        print_error(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
