"""The control socket's client, for the ``wgvsock`` command: one request and its answer, bounded in time and size."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any, Final, NoReturn

from wgvsock.errors import TransportError
from wgvsock.telemetry.endpoint import REQUEST_TIMEOUT
from wgvsock.transports.blocking import receive_to_end

MAX_ANSWER: Final = 4 << 20
"""Bytes. A relay's snapshot with one enclave has about 3000."""

_STATUS: Final = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})[ \r]")
_LENGTH: Final = re.compile(rb"\r\nContent-Length: *([0-9]{1,8})\r\n", re.IGNORECASE)
_JSON: Final = re.compile(rb"\r\nContent-Type: *application/json[;\r]", re.IGNORECASE)


class NotRunningError(TransportError):
    """Nothing listens at a control socket."""

    code = "WGV-E087"
    exit_code = 3


def request(path: str, method: str, target: str, *, timeout: float = REQUEST_TIMEOUT) -> tuple[int, Any]:
    """Send a request to a control socket and wait for the answer. This blocks.

    Args:
        path: Path of the socket.
        method: Such as ``GET``.
        target: Such as ``/status``.
        timeout: Seconds for the whole exchange.

    Returns:
        The HTTP status, and the JSON value or the text of the answer.

    Raises:
        NotRunningError: Nothing listens at the path.
        TransportError: The socket cannot be reached, or the answer is invalid.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(timeout)
        try:
            channel.connect(path)
            channel.sendall(f"{method} {target} HTTP/1.1\r\nHost: wgvsock\r\n\r\n".encode())
            answer = receive_to_end(channel, limit=MAX_ANSWER, deadline=deadline)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunningError(
                f"no service is running at {path}",
                why=str(error.strerror),
                fix="start it, or name its configuration with -c",
            ) from error
        except OSError as error:
            raise TransportError(
                f"cannot query the service at {path}",
                why=error.strerror or str(error),
                fix="run this as the service's user or as root, and see the service's log if it does not respond",
            ) from error
    if answer is None:
        raise _none(path, f"it is longer than {MAX_ANSWER} bytes")
    return _parse(answer, path)


def _parse(answer: bytes, path: str) -> tuple[int, Any]:
    head, found, body = answer.partition(b"\r\n\r\n")
    head += b"\r\n"
    status, length = _STATUS.match(head), _LENGTH.search(head)
    if not found or status is None or length is None:
        raise _none(path, "it is not a control socket of wgvsock")
    if len(body) != int(length[1]):
        raise _none(path, "the answer broke off")
    try:
        text = body.decode()
        value = json.loads(text, parse_constant=_refuse) if _JSON.search(head) else text
    except (ValueError, RecursionError):
        raise _none(path, "it is not a control socket of wgvsock") from None
    return int(status[1]), value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)  # NaN and Infinity are not JSON, and could not be printed as JSON


def _none(path: str, why: str) -> TransportError:
    return TransportError(f"{path} gave no valid answer", why=why, fix="check the path")
