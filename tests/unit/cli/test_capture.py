"""`wgvsock capture`: a private file, a count, and an end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wgvsock.cli import main
from wgvsock.tunnel.pcap import FILE_HEADER, SNAP_LENGTH, record

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
PACKETS = [record(number, bytes([number]) * 50) for number in range(3)]


class Relay:
    """Sends this to one client."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "relay.sock")
        self.asked = b""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread: threading.Thread | None = None

    def says(self, *parts: bytes, stays: bool = False) -> None:
        def serve() -> None:
            client, _ = self._listener.accept()
            with client:
                self.asked = client.recv(4096)
                for part in parts:
                    client.sendall(part)
                if stays:
                    client.recv(1)

        self._thread = threading.Thread(target=serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        if self._thread is not None:
            self._thread.join()


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    made = Relay(tmp_path)
    yield made
    made.close()


def test_packets_are_written_and_counted(relay: Relay, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.pcap"
    whole = HEAD + FILE_HEADER + b"".join(PACKETS)
    relay.says(whole[:30], whole[30:70], whole[70:])
    assert main(["capture", "wallet", "--inner", "--socket", relay.path, "-o", str(file)]) == 0
    assert file.read_bytes() == FILE_HEADER + b"".join(PACKETS)
    assert file.stat().st_mode & 0o777 == 0o600
    assert relay.asked.startswith(b"GET /capture?layer=inner&enclave=wallet HTTP/1.1\r\n")
    assert capsys.readouterr().err == "note: the relay ended the capture\nnote: 3 packets captured\n"


def test_it_ends_after_so_many(relay: Relay, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relay.says(HEAD + FILE_HEADER + b"".join(PACKETS), stays=True)
    file = tmp_path / "a.pcap"
    assert main(["capture", "--socket", relay.path, "-o", str(file), "-n", "1"]) == 0
    assert file.read_bytes() == FILE_HEADER + PACKETS[0]
    assert "1 packet captured" in capsys.readouterr().err
    assert b"layer=outer" in relay.asked


def test_it_ends_after_a_while(relay: Relay, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relay.says(HEAD + FILE_HEADER, stays=True)
    assert main(["capture", "--socket", relay.path, "-o", str(tmp_path / "a.pcap"), "--seconds", "0.01"]) == 0
    assert "0 packets captured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b'HTTP/1.1 404 Not Found\r\n\r\n{"enclaves": ["a", "b"]}', ("WGV-E001", 2)),
        (b"HTTP/1.1 404 Not Found\r\n\r\nthere is nothing here\n", ("WGV-E010", 6)),
        (b"HTTP/1.1 409 Conflict\r\n\r\n{}", ("WGV-E103", 1)),
        (b"nonsense", ("WGV-E010", 6)),
    ],
)
def test_a_refusal(
    relay: Relay, tmp_path: Path, answer: bytes, failure: tuple[str, int], fails: Callable[..., Any]
) -> None:
    relay.says(answer)
    file = tmp_path / "a.pcap"
    assert fails("capture", "--socket", relay.path, "-o", str(file), status=failure[1]).code == failure[0]
    assert not file.exists()


def test_what_is_no_packet_ends_it(relay: Relay, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relay.says(HEAD + FILE_HEADER + bytes(8) + (SNAP_LENGTH + 1).to_bytes(4, "little") + bytes(4))
    assert main(["capture", "--socket", relay.path, "-o", str(tmp_path / "a.pcap")]) == 6
    assert "the relay sent an invalid packet record" in capsys.readouterr().err


def test_a_file_that_is_there_is_not_written_to(relay: Relay, tmp_path: Path, fails: Callable[..., Any]) -> None:
    relay.says(HEAD + FILE_HEADER)
    file = tmp_path / "a.pcap"
    file.write_text("mine")
    assert fails("capture", "--socket", relay.path, "-o", str(file), status=1).why == "File exists"
    assert file.read_text() == "mine"


def test_nobody_is_there(tmp_path: Path, fails: Callable[..., Any]) -> None:
    missing = str(tmp_path / "no.sock")
    assert fails("capture", "--socket", missing, "-o", str(tmp_path / "a"), status=3).code == "WGV-E087"


@pytest.mark.parametrize("option", [("-n", "0"), ("--seconds", "nan"), ("--seconds", "0")])
def test_odd_limits(option: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["capture", "-o", str(tmp_path / "a"), *option])
