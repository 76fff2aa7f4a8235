"""Sends one buffer as many datagrams (UDP_SEGMENT, udp(7)) to an echo server and counts the distinct answers.

python3 udp_segments.py HOST PORT SEGMENTS SIZE
"""

from __future__ import annotations

import json
import socket
import sys

SOL_UDP, UDP_SEGMENT = 17, 103
TIMEOUT = 5.0
"""Seconds without an answer after which the count is final."""


def main(host: str, port: int, segments: int, size: int) -> None:
    """Send, collect and report."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect((host, port))
        sock.setsockopt(SOL_UDP, UDP_SEGMENT, size)
        wanted = {number.to_bytes(4, "big") * (size // 4) for number in range(segments)}
        sock.send(b"".join(sorted(wanted)))
        answered: set[bytes] = set()
        while answered != wanted:
            try:
                answered.add(sock.recv(65_535))
            except TimeoutError:
                break
    sys.stdout.write(json.dumps({"answered": len(answered & wanted), "strange": len(answered - wanted)}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], *(int(text) for text in sys.argv[2:]))
