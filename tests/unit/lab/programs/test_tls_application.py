"""The HTTPS application forwards a request and the answer, and so does a proxy in front of it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from lab.programs.tls_application import Server, make_certificate


@contextlib.contextmanager
def serving(folder: Path, name: str, agent: str | None, upstream: tuple[str, int] | None) -> Iterator[int]:
    """Start a server on loopback. Returns its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = folder / f"{name}.pem"
    key = make_certificate(certificate)
    context.load_cert_chain(certificate, key)
    with Server(0, context, agent, upstream) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(60)


def ask(port: int) -> tuple[bytes, bytes]:
    """Return the answer, and the certificate of the connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 60)) as sock:
        certificate = sock.getpeercert(binary_form=True) or b""  # of a connection that has ended none is told
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while data := sock.recv(4096):
            answer += data
        return answer, certificate


def test_both_pass_on_and_show_certificates_of_their_own(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(path)
        agent.listen()

        def answer() -> None:
            for _ in range(2):
                connection, _ = agent.accept()
                with connection:
                    assert connection.recv(4096) == b"GET / HTTP/1.0\r\n\r\n"
                    connection.sendall(b"hello")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with (
            serving(tmp_path, "enclave", path, None) as port,
            serving(tmp_path, "proxy", None, ("127.0.0.1", port)) as proxy,
        ):
            direct, ours = ask(port)
            passed_on, other = ask(proxy)
        thread.join(60)
    assert direct == passed_on == b"hello"
    assert ours != other
    assert (tmp_path / "enclave.key").stat().st_mode & 0o777 == 0o600
