"""Replaces KMS: over TLS, with the name that the client checks."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.guest import kms
from lab.programs.tls_application import make_certificate

NAME = "kms.lab.test"


class Connection(http.client.HTTPSConnection):
    """Connect to a port of this machine, whatever name is checked."""

    def __init__(self, port: int, name: str, roots: Path) -> None:
        super().__init__(name, timeout=10)
        self._port, self._roots = port, roots

    def connect(self) -> None:
        context = ssl.create_default_context(cafile=str(self._roots))
        self.sock = context.wrap_socket(socket.create_connection(("127.0.0.1", self._port)), server_hostname=self.host)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    certificate = tmp_path / "kms.pem"
    with kms.serve(0, certificate, make_certificate(certificate, NAME)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], certificate
        server.shutdown()
        thread.join()


def call(connection: Connection, operation: str) -> tuple[int, dict[str, Any]]:
    headers = {"X-Amz-Target": f"TrentService.{operation}"}
    connection.request("POST", "/", json.dumps({"NumberOfBytes": 24}), headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_random_bytes(served: tuple[int, Path]) -> None:
    connection = Connection(served[0], NAME, served[1])
    status, content = call(connection, "GenerateRandom")
    assert (status, len(base64.b64decode(content["Plaintext"]))) == (200, 24)
    assert call(connection, "Decrypt") == (400, {"__type": "UnknownOperationException"})
    connection.close()


def test_another_name_is_not_its_own(served: tuple[int, Path]) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        call(Connection(served[0], "sts.lab.test", served[1]), "GenerateRandom")
