"""The Enclave with what the production command has no option for: the laboratory's signer, and other WireGuard timers.

``python -m lab.enclave_agent --config F [--secure-module SOCKET] [--entropy-log F] [--timings JSON] [-- app args…]``

Without a socket the security module is /dev/nsm, as in production. This is the one place where a fake security module
meets the production Enclave, and it is not in the wheel: the production command has no flag, variable or import that
could do it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lab.nsm.client import UnixSecureModule
from wgvsock.cli.output import print_error
from wgvsock.cli.services import SignalHandlers, run_service
from wgvsock.devices.nsm import NsmDevice
from wgvsock.enclave.application import FORWARDED_SIGNALS
from wgvsock.enclave.config import EnclaveConfig, load
from wgvsock.enclave.supervisor import EnclaveSupervisor
from wgvsock.errors import WgvsockError
from wgvsock.telemetry import logs
from wgvsock.wireguard import Timings


class RecordedEntropy:
    """The system's entropy, with a record of each draw that can be a private key (`lab.opener` reads it)."""

    def __init__(self, stream: BinaryIO, source: Callable[[int], bytes] = os.urandom) -> None:
        self._stream = stream
        self._source = source

    def __call__(self, size: int) -> bytes:
        """Draw `size` bytes."""
        drawn = self._source(size)
        if size == 32:
            self._stream.write(drawn.hex().encode() + b"\n")
            self._stream.flush()
        return drawn


def start(
    config: EnclaveConfig, command: Sequence[str], secure_module: str | None, **options: Any
) -> tuple[Coroutine[Any, Any, int], SignalHandlers]:
    """The supervisor and its signals, as ``wgvsock enclave run`` has them.

    The kernel's generator is this machine's, not an enclave's, where the module is a socket of the signer's: that has
    nothing to give to it.
    """
    if secure_module is None:
        supervisor = EnclaveSupervisor(config, NsmDevice(), **options)
    else:
        supervisor = EnclaveSupervisor(config, UnixSecureModule(secure_module), seed=None, **options)
    forwarded = {number: lambda number=number: supervisor.forward(number) for number in FORWARDED_SIGNALS}
    stops = {signal.SIGTERM: supervisor.stop, signal.SIGINT: supervisor.stop}
    return supervisor.run(command), {**forwarded, **stops}


def main(argv: Sequence[str]) -> int:
    """Run the agent until it is stopped or its application ends."""
    parser = argparse.ArgumentParser(prog="lab.enclave_agent")
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
            options = {"random": RecordedEntropy(stream), "timings": Timings(**arguments.timings)}
            return run_service(lambda: start(config, arguments.application, arguments.secure_module, **options))
    except WgvsockError as error:
        print_error(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
