"""``python -m wgvsock.uplink PACKETS ORDERS``: runs the engine on two inherited file descriptors, given by number."""

from __future__ import annotations

import socket
import sys

from wgvsock.errors import WgvsockError
from wgvsock.uplink import sandbox
from wgvsock.uplink.engine import Engine


def main(arguments: list[str]) -> int:
    """Run the engine until the relay is gone, and return the exit status."""
    sandbox.die_with_parent()
    sandbox.keep_buffers_apart()
    packets, orders = (socket.socket(fileno=int(number)) for number in arguments)
    try:
        with packets, orders:
            Engine(packets, orders).run()
    except WgvsockError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except (KeyboardInterrupt, ConnectionError):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
