"""Watches every interface of a machine for forbidden packets: ``python3 sentinel.py ADDRESS…``.

Standard library only, run by path where there is only Python. A cooked packet socket (packet(7)) that is bound to no
interface receives from all of them, including those that are created later. Each packet from or to one of the addresses
that passes an interface other than the tunnel's is a line of output. SIGUSR1 requests the number of inspected packets,
which is printed when every packet that had passed by then was inspected.
"""

from __future__ import annotations

import argparse
import ipaddress
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final

_ETH_P_ALL: Final = 0x0003
_ETH_P_IP: Final = 0x0800
_ETH_P_IPV6: Final = 0x86DD
_SO_RCVBUFFORCE: Final = 33
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_BUFFER: Final = 32 << 20
_ARPHRD_NONE: Final = 0xFFFE
_HEADERS: Final = 128  # bytes: what follows the addresses is not inspected


def addresses_of(protocol: int, packet: bytes) -> tuple[str, ...]:
    """Return source and destination of an IP packet, or nothing for anything else."""
    if protocol == _ETH_P_IP and len(packet) >= 20:
        return socket.inet_ntop(socket.AF_INET, packet[12:16]), socket.inet_ntop(socket.AF_INET, packet[16:20])
    if protocol == _ETH_P_IPV6 and len(packet) >= 40:
        return socket.inet_ntop(socket.AF_INET6, packet[8:24]), socket.inet_ntop(socket.AF_INET6, packet[24:40])
    return ()


def is_tunnel(interface: str, hardware: int, tunnels: Sequence[str]) -> bool:
    """Return whether a packet passed a tunnel's own interface.

    The name is looked up when the packet is read. A busy machine reads the last packets of an interface after it has
    gone, when it has no name. Only a tunnel's interface has the type ARPHRD_NONE.
    """
    return interface in tunnels or (not interface and hardware == _ARPHRD_NONE)


def open_socket() -> socket.socket:
    """Receive every packet of every interface of this network namespace, in both directions."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:  # in a user namespace net.core.rmem_max is the limit
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    return sock


def lost(sock: socket.socket) -> int:
    """Return the number of packets dropped for lack of buffer space since the last call."""
    return int(struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1])


def main(argv: Sequence[str]) -> int:
    """Watch until killed."""
    parser = argparse.ArgumentParser(prog="sentinel")
    parser.add_argument("addresses", nargs="+", type=lambda text: str(ipaddress.ip_address(text)))
    parser.add_argument("--besides", action="append", default=[], metavar="IF", help="the tunnel's own interface")
    arguments = parser.parse_args(argv)
    wanted = set(arguments.addresses)
    asked = 0

    def ask(*_: object) -> None:
        nonlocal asked
        asked += 1

    signal.signal(signal.SIGUSR1, ask)
    seen = answered = 0
    with open_socket() as sock:
        sock.settimeout(0.05)
        print("ready", flush=True)
        while True:
            due = asked
            try:
                packet, (interface, protocol, _, hardware, *_) = sock.recvfrom(_HEADERS)
            except TimeoutError:
                if due > answered:
                    answered += 1
                    print(f"looked {answered} at {seen}, lost {lost(sock)}", flush=True)
                continue
            seen += 1
            ends = addresses_of(protocol, packet)
            if not is_tunnel(interface, hardware, arguments.besides) and not wanted.isdisjoint(ends):
                print(f"leak {interface} {' > '.join(ends)}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
