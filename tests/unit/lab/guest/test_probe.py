from __future__ import annotations

import json
import socket
import threading

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from lab.guest import probe


@pytest.mark.parametrize("data", [b"", b"\x01", b"ping", b"\xff" * 99])
def test_the_checksum_is_scapys(data: bytes) -> None:
    packet = bytes(ICMP(chksum=0) / Raw(data))
    assert probe.internet_checksum(packet) == bytes_to_checksum(IP(bytes(IP() / ICMP() / Raw(data))))


def bytes_to_checksum(packet: IP) -> int:
    return int(packet[ICMP].chksum)


def test_the_time_that_is_left_ends_in_an_error() -> None:
    with pytest.raises(TimeoutError, match="no answer"):
        probe.left(0.0)


def connected(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: ours)
    return theirs


def echo(sock: socket.socket, change: bytes = b"") -> threading.Thread:
    def serve() -> None:
        with sock:
            while data := sock.recv(1 << 16):
                sock.sendall(change or data)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def test_tcp_compares_every_byte(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    thread = echo(connected(monkeypatch))
    assert probe.main(["tcp", "host", "7", "--bytes", "300000"]) == 0
    thread.join(10)
    answer = report(capsys)
    assert (answer["ok"], answer["bytes"]) == (True, 300000)


def test_tcp_tells_other_bytes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    thread = echo(connected(monkeypatch), change=b"zz")
    assert probe.main(["tcp", "host", "7", "--text", "ab"]) == 1
    thread.join(10)
    assert "2 others" in str(report(capsys)["error"])


def test_http_reads_status_and_body(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = connected(monkeypatch)
    theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes")
    theirs.shutdown(socket.SHUT_WR)
    with theirs:
        assert probe.main(["http", "2001:db8::1", "80", "/path"]) == 0
        request = theirs.recv(1000)
    assert request.startswith(b"GET /path HTTP/1.1\r\nHost: [2001:db8::1]\r\n")
    answer = report(capsys)
    assert (answer["status"], answer["body"]) == (200, "yes")


def test_an_error_is_a_report_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert probe.main(["tcp", "host", "7"]) == 1
    assert report(capsys) == {"ok": False, "error": "ConnectionRefusedError: [Errno 111] Connection refused"}
