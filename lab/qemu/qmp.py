"""QEMU's machine protocol, as far as the laboratory needs it (https://www.qemu.org/docs/master/interop/qmp-spec.html)."""

from __future__ import annotations

import json
import socket
from typing import Any

from lab.qemu.errors import GuestError


class Qmp:
    """A session: one JSON object per line in each direction, with events in between.

    Args:
        sock: Connected to QEMU's ``-qmp`` socket.

    Raises:
        GuestError: The other end is not a QMP server.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stream = sock.makefile("rb")
        if "QMP" not in self._receive():
            raise GuestError("cannot control QEMU", why="its socket does not speak QMP")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return what it returned.

        Raises:
            GuestError: QEMU refused, or is gone.
        """
        self._send({"execute": command, "arguments": arguments})
        while True:
            answer = self._receive()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise GuestError(f"QEMU refused {command}", why=answer["error"].get("desc", ""))

    def close(self) -> None:
        """Close the session. Idempotent."""
        self._stream.close()
        self._sock.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise GuestError("cannot control QEMU", why=str(error)) from None

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._stream.readline()
        except OSError as error:
            raise GuestError("cannot control QEMU", why=str(error)) from None
        if not line:
            raise GuestError("cannot control QEMU", why="it closed its socket")
        message: dict[str, Any] = json.loads(line)
        return message
