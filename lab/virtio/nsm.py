"""``python -m lab.virtio.nsm --socket S --signer S``: the security module's virtio device, passed to a guest by QEMU.

Linux's nsm driver (drivers/misc/nsm.c) finds it by its identifier and creates /dev/nsm from it, as on Nitro: the ioctl,
its limits and its errors are the kernel's own. Requests and responses are forwarded to the signer. No key is here.

One life of QEMU is one boot of the enclave. SIGHUP starts another: the driver cannot restart with its device, because
it does not reset the device when it is unloaded (Linux 6.12).
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lab.nsm.client import UnixSecureModule
from lab.virtio.ring import RingError
from lab.virtio.vhost_user import Backend, VhostUserError
from wgvsock.devices.nsm import MAX_REQUEST_SIZE, NsmError

DEVICE_ID: Final = 33
"""virtio's identifier of a Nitro Security Module (VIRTIO_ID_NITRO_SEC_MOD, linux/virtio_ids.h)."""


class Boots:
    """The signer's connections, one per boot of the enclave, made with its first request.

    Args:
        signer: The signer's socket.
    """

    def __init__(self, signer: str) -> None:
        self._signer = signer
        self._module: UnixSecureModule | None = None
        self._over = False

    def request(self, request: bytes) -> bytes:
        """Return the module's response.

        Raises:
            OSError: The signer is gone.
        """
        if self._over:
            self.end()
        try:
            if self._module is None:
                self._module = UnixSecureModule(self._signer)
            return self._module.request(request)
        except NsmError as error:
            raise ConnectionError(str(error)) from error

    def next(self) -> None:
        """Let the next request start another boot. May be called during one."""
        self._over = True

    def end(self) -> None:
        """Close the connection. Idempotent."""
        self._over = False
        if self._module is not None:
            self._module.close()
        self._module = None


def complain(text: str) -> None:
    """Log the problem, because the guest can hardly be told."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Serve one QEMU after another until killed. ``ready`` says that the socket exists."""
    parser = argparse.ArgumentParser(prog="lab.virtio.nsm")
    parser.add_argument("--socket", required=True, help="where QEMU connects")
    parser.add_argument("--signer", required=True, help="the enclave's socket of lab.nsm.server")
    arguments = parser.parse_args(argv)
    boots = Boots(arguments.signer)
    signal.signal(signal.SIGHUP, lambda *_: boots.next())
    Path(arguments.socket).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(arguments.socket)
        listener.listen(1)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            serve(connection, boots)


def serve(connection: socket.socket, boots: Boots) -> None:
    """Act as the device of one QEMU until it ends."""
    try:
        with connection:
            Backend(connection, boots.request, MAX_REQUEST_SIZE, complain).serve()
    except (VhostUserError, RingError, OSError) as error:
        complain(f"the device is lost to this guest: {error}")
    finally:
        boots.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
