"""The signer process: ``python -m lab.nsm.server --state-dir DIR`` serves fake modules over Unix sockets.

Each enclave has its own socket, so that none can take another's identity. Each connection to it is one boot. A control
socket changes the settings. All keys are in memory and end with the process.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import cbor2

from lab.nsm.faults import Faults
from lab.nsm.pki import LabAuthority
from lab.nsm.signer import FakeNsm, LabEnclave, utc_now
from lab.nsm.wire import control_path, receive_message, send_message
from wgvsock.attestation.measurements import read_measurements


@dataclass(frozen=True, slots=True)
class _Served:
    enclave: LabEnclave
    socket: str


class NsmServer:
    """The enclaves and their modules.

    Args:
        listen: Starts to serve connections to a path with a function. Called for each enclave.
        clock: Returns aware wall-clock time.
    """

    def __init__(
        self,
        listen: Callable[[str, Callable[[socket.socket], None]], None],
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._listen = listen
        self._clock = clock
        self._authority = LabAuthority(clock)
        self._served: dict[str, _Served] = {}

    def create(self, name: str, socket_path: str, enclave: LabEnclave) -> dict[str, Any]:
        """Add an enclave, and return its description.

        Raises:
            ValueError: There is one of that name.
            OSError: The socket cannot be created.
        """
        if name in self._served:
            raise ValueError(f"there is an enclave {name!r} already")
        self._listen(socket_path, lambda connection: self.serve_boot(connection, enclave))
        self._served[name] = _Served(enclave, socket_path)
        return self.describe(name)

    def describe(self, name: str) -> dict[str, Any]:
        """Return identity, measurements and root.

        Raises:
            KeyError: There is no such enclave.
        """
        served = self._served[name]
        return {
            "root_sha256": self._authority.root_fingerprint,
            "socket": served.socket,
            "module_id": served.enclave.module_id,
            "measurements": dict(served.enclave.measurements),
        }

    def serve_boot(self, connection: socket.socket, enclave: LabEnclave) -> None:
        """Act as the module for one boot, until the enclave closes the connection."""
        module = FakeNsm(self._authority, enclave, clock=self._clock)
        while (request := receive_message(connection)) is not None:
            send_message(connection, module.request(request))

    def serve_control(self, connection: socket.socket) -> None:
        """Carry out requests until the operator closes the connection. A mistake gets an answer and is never fatal."""
        while (message := receive_message(connection)) is not None:
            try:
                reply = self._obey(cbor2.loads(message))
            except (KeyError, TypeError, ValueError, OSError, cbor2.CBORDecodeError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            send_message(connection, cbor2.dumps(reply))

    def _obey(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        name = question["enclave"]
        match question["op"]:
            case "describe":
                return self.describe(name)
            case "set-faults":
                self._served[name].enclave.faults = Faults(**question["faults"])
            case "set-measurements":
                self._served[name].enclave.measurements = question["measurements"]
            case "create":
                known = {key: question[key] for key in ("module_id", "measurements") if key in question}
                return self.create(name, question["socket"], LabEnclave(**known))
            case other:
                raise ValueError(f"there is no operation {other!r}")
        return {"ok": True}


def listen_unix(path: str, serve: Callable[[socket.socket], None]) -> None:
    """Serve each connection to a Unix stream socket in a daemon thread.

    Raises:
        OSError: The socket cannot be created.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # when a peer disconnects, its boot ends
                serve(self.request)

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        block_on_close = False

    Path(path).unlink(missing_ok=True)
    server = Server(path, Handler)
    threading.Thread(target=server.serve_forever, name=path, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. One line of JSON on stdout says when and where."""
    parser = argparse.ArgumentParser(prog="python -m lab.nsm.server", description="fake NSM signer (never AWS's)")
    parser.add_argument("--state-dir", type=Path, required=True, help="folder of sockets without a path")
    parser.add_argument("--socket", help="first enclave's module (default: STATE_DIR/nsm.sock)")
    parser.add_argument("--control", help="control socket (default: STATE_DIR/control.sock)")
    parser.add_argument("--enclave", default="enclave", help="first enclave's name on the control socket")
    parser.add_argument("--module-id", help="first enclave's module_id (default: a random one)")
    parser.add_argument("--measurements", type=Path, help="its PCRs: JSON as nitro-cli build-enclave prints it")
    options = parser.parse_args(arguments)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before any thread starts: sigwait below takes the signals

    known: dict[str, Any] = {}
    if options.module_id:
        known["module_id"] = options.module_id
    if options.measurements:
        known["measurements"] = read_measurements(options.measurements.read_text())
    options.state_dir.mkdir(parents=True, exist_ok=True)
    socket_path = options.socket or str(options.state_dir / "nsm.sock")
    control = options.control or control_path(options.state_dir)
    server = NsmServer(listen_unix)
    description = server.create(options.enclave, socket_path, LabEnclave(**known))
    listen_unix(control, server.serve_control)
    print(
        json.dumps(
            {
                "root_sha256": description["root_sha256"].hex(),
                "socket": socket_path,
                "control": control,
                "module_id": description["module_id"],
                "pcrs": {f"PCR{index}": value.hex() for index, value in description["measurements"].items()},
            }
        ),
        flush=True,
    )
    signal.sigwait(signals)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
