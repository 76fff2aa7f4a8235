"""``wgvsock device`` as laboratories need it: with shorter timers, or with Unix sockets in place of AF_VSOCK."""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import sys
from pathlib import Path
from unittest import mock

from wgvsock.addresses import StreamAddress, UnixAddress, VsockAddress
from wgvsock.cli import device
from wgvsock.transports import sockets, stream
from wgvsock.wireguard import Timings

VSOCK_DIRECTORY = Path("/run/wgvsock/vsock")


def stand_in(address: StreamAddress) -> StreamAddress:
    """Return the Unix socket that stands for a vsock port of any CID: this machine's vsock leads to its hypervisor."""
    return UnixAddress(str(VSOCK_DIRECTORY / str(address.port))) if isinstance(address, VsockAddress) else address


def put_vsock_on_unix() -> None:
    """Replace the two functions that create vsock streams."""
    VSOCK_DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def connect(address: StreamAddress, *, deadline: float, to_host: bool = False) -> socket.socket:
        return await sockets.connect_stream(stand_in(address), deadline=deadline, to_host=to_host)

    def listen(address: StreamAddress, *, backlog: int = sockets.BACKLOG) -> socket.socket:
        return sockets.listen_stream(stand_in(address), backlog=backlog)

    mock.patch.multiple(stream, connect_stream=connect, listen_stream=listen).start()


def main() -> int:
    """Remove this program's options from the front of the command line. The rest is ``wgvsock device``'s."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--vsock-on-unix", action="store_true")
    parser.add_argument("--rekey-after", type=float)
    ours, rest = parser.parse_known_args()
    if ours.vsock_on_unix:
        put_vsock_on_unix()
    timings = Timings()
    if ours.rekey_after is not None:
        # An initiation follows another one after rekey_timeout at the earliest.
        timings = dataclasses.replace(timings, rekey_after_time=ours.rekey_after, rekey_timeout=ours.rekey_after / 4)
    theirs = argparse.ArgumentParser()
    device.add_arguments(theirs)
    return device.run_device(device.read_options(theirs.parse_args(rest), os.environ), timings=timings)


if __name__ == "__main__":
    sys.exit(main())
