"""``wgvsock capture [ENCLAVE] [--outer|--inner] -o FILE``: capture an enclave's tunnel for Wireshark.

--outer (the default) writes the WireGuard messages of the stream as if each had travelled over UDP, so that Wireshark's
own dissector shows handshakes, counters and sizes. Their contents stay encrypted. --inner writes the IP packets
themselves, including everything that the application does not encrypt. Capture them only if you may read them.

Packets that arrive faster than they are read are left out, and the relay logs how many. Super-packets of up to 64 KiB
appear as they are. The capture ends with Ctrl-C, after N packets or after S seconds, with exit status 0.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urlencode

from wgvsock.cli.output import note
from wgvsock.cli.status import add_socket, socket_path
from wgvsock.errors import ConfigurationError, TransportError, WgvsockError
from wgvsock.telemetry.client import NotRunningError
from wgvsock.tunnel.pcap import FILE_HEADER, RECORD_HEADER_SIZE, SNAP_LENGTH, record_size

_CHUNK: Final = 1 << 18
_MAX_HEAD: Final = 4096
_PATIENCE: Final = 5.0
"""Seconds to wait for the relay's answer."""


class CaptureError(WgvsockError):
    """Packets could not be captured or written."""

    code = "WGV-E103"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``capture`` to the commands of ``wgvsock``."""
    parser = commands.add_parser(
        "capture",
        help="capture the packets of an enclave's tunnel for Wireshark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("enclave", nargs="?", metavar="ENCLAVE", help="its name, if the relay serves several")
    layer = parser.add_mutually_exclusive_group()
    layer.add_argument(
        "--outer", dest="layer", action="store_const", const="outer", help="WireGuard messages (default)"
    )
    layer.add_argument("--inner", dest="layer", action="store_const", const="inner", help="IP packets, unencrypted")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="a file that does not exist yet; - is stdout"
    )
    parser.add_argument("-n", "--number", type=_number, metavar="N", help="end after this many packets")
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="end after this many seconds")
    add_socket(parser, named=True)
    parser.set_defaults(run=run, layer="outer")


def run(args: argparse.Namespace) -> int:
    """Run the command, and return its exit status.

    Raises:
        CaptureError: Another capture of this enclave is running, or the file cannot be written.
        ConfigurationError: There is no such enclave.
        TransportError: The relay is not running, or does not answer.
    """
    path = args.socket or socket_path("relay", args.config, args.name)
    deadline = None if args.seconds is None else time.monotonic() + args.seconds
    query = {"layer": args.layer, **({} if args.enclave is None else {"enclave": args.enclave})}
    with _connection(path) as channel:
        rest = _begin(channel, path, f"/capture?{urlencode(query)}")
        with _output(args.output) as file:
            count = 0
            try:
                for data in _records(channel, rest, deadline):
                    file.write(data)
                    count += len(data) > 0
                    if count == args.number:
                        break
            except KeyboardInterrupt:
                pass
            except OSError as error:
                raise CaptureError(
                    f"cannot write {args.output}", why=error.strerror or str(error), fix="name another file with -o"
                ) from error
            finally:
                note(f"{count} packet{'' if count == 1 else 's'} captured")
    return 0


def _records(channel: socket.socket, rest: bytes, deadline: float | None) -> Iterator[bytes]:
    """Whole records, until the relay ends the capture or the time is up."""
    waiting = bytearray(rest)
    while deadline is None or time.monotonic() < deadline:
        while len(waiting) >= RECORD_HEADER_SIZE:
            size = record_size(bytes(waiting[:RECORD_HEADER_SIZE]))
            if size > SNAP_LENGTH:
                raise TransportError(
                    "the capture broke off", why="the relay sent an invalid packet record", fix="compare the versions"
                )
            if len(waiting) < RECORD_HEADER_SIZE + size:
                break
            yield bytes(waiting[: RECORD_HEADER_SIZE + size])
            del waiting[: RECORD_HEADER_SIZE + size]
        channel.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
        try:
            data = channel.recv(_CHUNK)
        except TimeoutError:
            return
        except OSError:  # such as a reset when the relay has ended
            data = b""
        if not data:
            note("the relay ended the capture")
            return
        waiting += data


def _begin(channel: socket.socket, path: str, target: str) -> bytes:
    """Request the capture, and return the part of it that arrived with the head of the answer."""
    channel.settimeout(_PATIENCE)
    answer = b""
    try:
        channel.sendall(f"GET {target} HTTP/1.1\r\nHost: wgvsock\r\n\r\n".encode())
        while b"\r\n\r\n" not in answer or (answer.startswith(b"HTTP/1.1 200") and _missing(answer)):
            data = channel.recv(_CHUNK)
            if not data or len(answer) > _MAX_HEAD + _CHUNK:
                break
            answer += data
    except OSError as error:
        raise TransportError(
            f"{path} gave no answer", why=error.strerror or str(error), fix="check the path"
        ) from error
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head[9:12]
    if status == b"200" and body.startswith(FILE_HEADER):
        return body[len(FILE_HEADER) :]
    if status == b"404" and b'"enclaves"' in body:
        raise ConfigurationError(
            "cannot tell which enclave to capture",
            why="the relay serves others, or several",
            fix="name one that wgvsock status shows",
        )
    if status == b"409":
        raise CaptureError("cannot capture", why="another capture of this enclave is running", fix="end that one first")
    raise TransportError(f"{path} gave no capture", why="it does not support GET /capture", fix="check the path")


def _missing(answer: bytes) -> bool:
    return len(answer.partition(b"\r\n\r\n")[2]) < len(FILE_HEADER)


@contextmanager
def _connection(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_PATIENCE)
        try:
            channel.connect(path)
        except OSError as error:
            raise NotRunningError(
                f"no service is running at {path}",
                why=error.strerror or str(error),
                fix="start it, or name its configuration with -c",
            ) from error
        yield channel


@contextmanager
def _output(name: str) -> Iterator[BinaryIO]:
    """A new file that only we can read. It must not be a link, which could lead the packets elsewhere."""
    if name == "-":
        if sys.stdout.isatty():
            raise CaptureError("cannot capture to a terminal", why="packets are binary", fix="name a file with -o")
        sys.stdout.buffer.write(FILE_HEADER)
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if not Path(name).is_fifo():  # Wireshark can read one
            raise CaptureError(
                f"cannot create {name}", why=error.strerror or str(error), fix="name a file that does not exist yet"
            ) from error
        descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(FILE_HEADER)
        yield file


def _number(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("not a number of packets from 1 up")
    return number


def _seconds(value: str) -> float:
    seconds = float(value)
    if not seconds > 0:  # also refuses NaN
        raise argparse.ArgumentTypeError("not a positive number of seconds")
    return seconds
