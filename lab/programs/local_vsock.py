"""Runs a service whose AF_VSOCK is a folder of Unix sockets.

``python -m lab.programs.local_vsock FOLDER MODULE [ARGUMENTS…]``

A Relay that launches enclaves dials the CIDs that nitro-cli reports. Where enclaves are processes of the same machine
(`lab.nitro.local`) there is no hypervisor to dial, and AF_VSOCK would lead to this machine's own. So port P of CID C is
the socket ``FOLDER/C/P``. Everything else of the service is the production code.
"""

from __future__ import annotations

import errno
import importlib
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from wgvsock.addresses import VsockAddress, is_dialable
from wgvsock.transports import sockets
from wgvsock.transports.unix import unix_socket


def replace_vsock(folder: Path) -> None:
    """Dial Unix sockets from now on, wherever this process dials AF_VSOCK."""

    def start_connect(sock: socket.socket, address: VsockAddress, *, to_host: bool) -> int:
        del to_host
        if not is_dialable(address.cid):
            return errno.EADDRNOTAVAIL
        code = sock.connect_ex(str(folder / str(address.cid) / str(address.port)))
        return errno.ECONNRESET if code == errno.ENOENT else code  # vsock's error when nothing listens

    vars(sockets).update(vsock_socket=unix_socket, start_connect=start_connect)


def main(argv: Sequence[str]) -> int:
    """Run the module's ``main`` with the arguments, and return its exit status."""
    folder, module, *arguments = argv
    replace_vsock(Path(folder))
    status: int = importlib.import_module(module).main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
