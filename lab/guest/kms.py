"""``python -m lab.guest.kms``: a stand-in for AWS KMS, as far as the example kms-client needs it.

It presents a certificate that its caller has made and that the client's image trusts. It checks no request signature::

    python3 -m lab.guest.kms --certificate kms.pem --key kms.key
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import ssl
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

PORT: Final = 443
_MAX_BODY: Final = 65_536
_TIMEOUT: Final = 10.0  # seconds


class Handler(BaseHTTPRequestHandler):
    """Answers GenerateRandom, and every other operation with KMS's error."""

    timeout = _TIMEOUT
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer a call."""
        asked = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), _MAX_BODY))
        if self.headers.get("X-Amz-Target") != "TrentService.GenerateRandom":
            self._answer(400, {"__type": "UnknownOperationException"})
            return
        count = int(json.loads(asked)["NumberOfBytes"])
        self._answer(200, {"Plaintext": base64.b64encode(os.urandom(min(count, 1024))).decode()})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def serve(port: int, certificate: Path, key: Path) -> ThreadingHTTPServer:
    """Return a server on every IPv4 address of this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("0.0.0.0", port), Handler)  # noqa: S104 (a namespace's)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


def main(arguments: Sequence[str]) -> int:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m lab.guest.kms")
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--port", type=int, default=PORT)
    parsed = parser.parse_args(arguments)
    with serve(parsed.port, parsed.certificate, parsed.key) as server:
        print("ready", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
