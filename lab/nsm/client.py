"""The laboratory's two ends: an enclave's module over a Unix socket, and the control socket with its settings."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import cbor2

from lab.errors import LabError
from lab.nsm.faults import Faults
from lab.nsm.wire import receive_message, send_message
from wgvsock.devices.nsm import NsmError

_TIMEOUT: Final = 120.0
"""Seconds, as in the real driver."""


def connect_unix(path: str) -> socket.socket:
    """Connect to a Unix stream socket.

    Raises:
        OSError: Nothing listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_TIMEOUT)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


class UnixSecureModule:
    """An enclave's module in the signer process. Implements `wgvsock.devices.base.SecureModule`.

    One connection is one boot: PCR16 and above are fresh and unlocked on each, and the connection is never silently
    reopened.

    Args:
        path: The socket that the server assigned to this enclave.
        connect: Makes the connection.

    Raises:
        NsmError: Nothing listens there.
    """

    def __init__(self, path: str, *, connect: Callable[[str], socket.socket] = connect_unix) -> None:
        try:
            self._connection = connect(path)
        except OSError as error:
            raise _broken(path, error) from error
        self._path = path
        self._one_at_a_time = threading.Lock()  # as in the real driver

    def request(self, request: bytes) -> bytes:
        """Send one request and wait for its response.

        Raises:
            NsmError: The signer is gone or hangs.
        """
        with self._one_at_a_time:
            try:
                send_message(self._connection, request)
                response = receive_message(self._connection)
            except OSError as error:
                raise _broken(self._path, error) from error
        if response is None:
            raise _broken(self._path, ConnectionError("the signer closed the connection"))
        return response

    def close(self) -> None:
        """End this boot. Idempotent."""
        self._connection.close()


@dataclass(frozen=True, slots=True)
class EnclaveDescription:
    """What the relay's operator would know about an enclave: identity, measurements, and the root to pin."""

    root_sha256: bytes
    socket: str
    module_id: str
    measurements: Mapping[int, bytes]


class NsmControl:
    """The settings of a running server. Each operation is one short connection.

    Args:
        path: The server's control socket.
        connect: Makes the connection.
    """

    def __init__(self, path: str, *, connect: Callable[[str], socket.socket] = connect_unix) -> None:
        self._path = path
        self._connect = connect

    def describe(self, enclave: str = "enclave") -> EnclaveDescription:
        """Return identity and measurements of one enclave.

        Raises:
            LabError: The server is gone, or does not know it.
        """
        return EnclaveDescription(**self._ask({"op": "describe", "enclave": enclave}))

    def set_faults(self, enclave: str = "enclave", **knobs: Any) -> None:
        """Set exactly these fields of `lab.nsm.faults.Faults`, from the next request on, and reset all others.

        Raises:
            LabError: The server is gone, does not know the enclave, or a setting does not exist.
        """
        faults = dataclasses.asdict(Faults(**knobs))
        self._ask({"op": "set-faults", "enclave": enclave, "faults": faults})

    def reset(self, enclave: str = "enclave") -> None:
        """Reset every setting.

        Raises:
            LabError: The server is gone, or does not know the enclave.
        """
        self.set_faults(enclave)

    def set_measurements(self, measurements: Mapping[int, bytes], enclave: str = "enclave") -> None:
        """Put another image in place, from the next boot on.

        Raises:
            LabError: The server is gone, or does not know the enclave.
        """
        self._ask({"op": "set-measurements", "enclave": enclave, "measurements": dict(measurements)})

    def create(
        self,
        enclave: str,
        socket_path: str,
        *,
        module_id: str | None = None,
        measurements: Mapping[int, bytes] | None = None,
    ) -> EnclaveDescription:
        """Add an enclave with its own socket. Identity and measurements are invented unless given.

        Raises:
            LabError: The server is gone, or the name or the socket is taken.
        """
        question: dict[str, Any] = {"op": "create", "enclave": enclave, "socket": socket_path}
        if module_id is not None:
            question["module_id"] = module_id
        if measurements is not None:
            question["measurements"] = dict(measurements)
        return EnclaveDescription(**self._ask(question))

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        try:
            with self._connect(self._path) as connection:
                send_message(connection, cbor2.dumps(question))
                answer = receive_message(connection)
        except OSError as error:
            raise LabError(f"cannot reach the fake NSM's control socket {self._path}", why=str(error)) from error
        reply = cbor2.loads(answer) if answer else {"error": "no answer"}
        if "error" in reply:
            raise LabError(f"the fake NSM refused {question['op']}", why=reply["error"])
        return dict(reply)


def _broken(path: str, error: OSError) -> NsmError:
    return NsmError(f"cannot reach the fake Nitro Security Module {path}", why=str(error), fix="is lab.nsm.server up?")
