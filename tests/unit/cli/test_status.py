"""What a service reports about itself, for people, for programs and as an exit status."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control_sockets import ControlSockets, text
from wgvsock.cli import main
from wgvsock.cli.status import exit_status, socket_path
from wgvsock.telemetry.endpoint import as_json

SOCKET = "/run/wgvsock/relay.sock"
COMMAND = ("status", "--socket", SOCKET)

PEER = {
    "public_key": "AAA=",
    "endpoint": "vsock:16:51820",
    "handshake_age_seconds": 12.6,
    "rx_bytes": 100,
    "tx_bytes": 200,
    "profile": "gso",
}
REFUSED = {"code": "WGV-E034", "what": "the document was refused", "why": "it is too old"}
UNREACHABLE = {"code": "WGV-E014", "what": "cannot connect", "why": "Connection refused"}


def snapshot(**changes: Any) -> dict[str, Any]:
    return {
        "schema": "wgvsock/v1",
        "role": "relay",
        "name": "first",
        "state": "ready",
        "ready": True,
        "provisioning": {"error": None},
        "wireguard": {"peers": []},
        "counters": {"dropped": {}},
        **changes,
    }


def not_ready(error: dict[str, str] | None = None) -> dict[str, Any]:
    return snapshot(state="provisioning", ready=False, provisioning={"error": error})


# The exit status.


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (snapshot(), 0),
        (snapshot(provisioning={}), 0),
        (snapshot(provisioning={"error": REFUSED}), 0),  # an earlier one
        (not_ready(), 4),
        (snapshot(ready=False, provisioning={}), 4),  # an enclave's
        (not_ready(UNREACHABLE), 4),
        (not_ready(REFUSED), 5),
        (not_ready({**REFUSED, "code": "WGV-E030"}), 5),
        (not_ready({**REFUSED, "code": "WGV-E039"}), 5),
        (not_ready({**REFUSED, "code": "WGV-E029"}), 4),
        (not_ready({**REFUSED, "code": "WGV-E040"}), 4),
    ],
)
def test_the_exit_status(
    sockets: ControlSockets, prints_json: Callable[..., dict[str, Any]], status: dict[str, Any], expected: int
) -> None:
    assert exit_status(status) == expected
    sockets.serve_status(SOCKET, status)
    assert prints_json(*COMMAND, status=expected) == status


@pytest.mark.usefixtures("sockets")
def test_not_running(fails: Callable[..., Any]) -> None:
    failure = fails(*COMMAND, status=3)
    assert failure.code == "WGV-E087"
    assert SOCKET in failure.what


def test_forbidden_to_ask(sockets: ControlSockets, fails: Callable[..., Any]) -> None:
    sockets.refuse(SOCKET, errno.EACCES)
    assert fails(*COMMAND, status=6).why == "Permission denied"


@pytest.mark.parametrize("answer", [{"message": "page not found"}, ["a", "list"], {"schema": "wgvsock/v2"}])
def test_another_program_s_socket(sockets: ControlSockets, fails: Callable[..., Any], answer: object) -> None:
    sockets.serve_status(SOCKET, answer)
    assert fails(*COMMAND, status=6).why == "it does not support GET /status"


def test_an_endpoint_without_status(sockets: ControlSockets, fails: Callable[..., Any]) -> None:
    sockets.serve(SOCKET, {("GET", "/live"): text("alive\n")})
    assert fails(*COMMAND, status=6).why == "it does not support GET /status"


@pytest.mark.parametrize("timeout", ["nan", "-1", "x"])
def test_a_timeout_that_is_none(timeout: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*COMMAND, "--wait", "--timeout", timeout])


# The socket's path.


@pytest.mark.parametrize("role", ["relay", "enclave"])
def test_the_socket_without_a_configuration(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"wgvsock.{role}.config.DEFAULT_PATH", "/no/such/file")
    assert socket_path(role, None) == f"/run/wgvsock/{role}.sock"


@pytest.mark.parametrize("role", ["relay", "enclave"])
def test_the_socket_of_a_configuration(
    role: str, tmp_path: Path, prints: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text('name = "other"\nruntime_directory = "/run/x"\n' + prints("config", "init", role))
    assert socket_path(role, str(path)) == "/run/x/other.sock"
    monkeypatch.setattr(f"wgvsock.{role}.config.DEFAULT_PATH", str(path))
    assert socket_path(role, None) == "/run/x/other.sock"


def test_a_configuration_that_is_not_there(tmp_path: Path, fails: Callable[..., Any]) -> None:
    assert fails("status", "-c", str(tmp_path / "missing.toml"), status=2).code == "WGV-E004"


@pytest.mark.parametrize(
    "text",
    [
        'name = "other"\nruntime_directory = "/run/x"\nunknown = 1\n',
        'name = "other"\nruntime_directory = "/run/x"\n[nat\n= 1',
        '= \nname = "other"\nruntime_directory = "/run/x"\n[x]\nname = "wrong"\n',
        'name = "other"\nruntime_directory = "/run/x"\nx = ' + "[" * 100_000,
    ],
)
def test_a_running_service_is_found_when_its_configuration_is_wrong(
    text: str, sockets: ControlSockets, tmp_path: Path, prints: Callable[..., str]
) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(text)
    sockets.serve_status("/run/x/other.sock", snapshot())
    assert prints("status", "-c", str(path)) == "relay first: ready\n"


@pytest.mark.parametrize(
    "text", ["", "name = 1\nruntime_directory = []", 'name = "a/b"\nruntime_directory = "\\u0000"', "\x00\xff"]
)
def test_what_names_no_socket_leaves_the_default(text: str, tmp_path: Path) -> None:
    path = tmp_path / "relay.toml"
    path.write_text(text)
    assert socket_path("relay", str(path)) == "/run/wgvsock/relay.sock"


def test_a_default_configuration_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wgvsock.relay.config.DEFAULT_PATH", str(tmp_path))
    assert socket_path("relay", None) == "/run/wgvsock/relay.sock"
    assert capsys.readouterr().err.startswith("note: the default configuration is ignored: ")


def test_a_service_by_its_name(sockets: ControlSockets, prints: Callable[..., str], fails: Callable[..., Any]) -> None:
    sockets.serve_status("/run/wgvsock/second.sock", snapshot())
    assert prints("status", "--name", "second") == "relay first: ready\n"
    assert fails("status", "--name", "../x", status=2).code == "WGV-E001"


def test_the_command_asks_where_the_configuration_says(
    sockets: ControlSockets, tmp_path: Path, prints: Callable[..., str]
) -> None:
    path = tmp_path / "enclave.toml"
    path.write_text('name = "app"\nruntime_directory = "/run/y"\n')
    sockets.serve_status("/run/y/app.sock", snapshot(role="enclave", name="app"))
    assert prints("status", "--role", "enclave", "-c", str(path)) == "enclave app: ready\n"


# --watch and --wait, with a clock that moves by sleeping.


class Clock:
    """Replaces the module `time`."""

    def __init__(self) -> None:
        self.now = 50.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_795_000_000.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("wgvsock.cli.status.time", made)
    return made


def serve_in_turn(sockets: ControlSockets, *snapshots: dict[str, Any]) -> None:
    """Each request gets the next answer. After the last one, the service is gone."""
    left: Iterator[dict[str, Any]] = iter(snapshots)

    def answer() -> Any:
        status = next(left)
        if status is snapshots[-1]:
            sockets.stop(SOCKET)
        return as_json(status)

    sockets.serve(SOCKET, {("GET", "/status"): answer})


def test_watching_prints_each_second_until_the_service_ends(
    sockets: ControlSockets, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_in_turn(sockets, not_ready(), snapshot(), snapshot(state="stopping", ready=False))
    assert main([*COMMAND, "--watch"]) == 3
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "relay first: not ready (provisioning)",
        "relay first: ready",
        "relay first: not ready (stopping)",
    ]
    assert captured.err.startswith("error[WGV-E087]: ")
    assert clock.slept == [1.0, 1.0, 1.0]


def test_waiting_for_one_that_is_ready(sockets: ControlSockets, clock: Clock, prints: Callable[..., str]) -> None:
    serve_in_turn(sockets, snapshot())
    assert prints(*COMMAND, "--wait") == "relay first: ready\n"
    assert not clock.slept


def test_waiting_through_the_start(sockets: ControlSockets, clock: Clock, prints: Callable[..., str]) -> None:
    def start(seconds: float) -> None:
        Clock.sleep(clock, seconds)
        if len(clock.slept) == 3:
            serve_in_turn(sockets, not_ready(REFUSED), not_ready(), snapshot())

    clock.sleep = start  # type: ignore[method-assign]
    assert prints(*COMMAND, "--wait") == "relay first: ready\n"
    assert len(clock.slept) == 5


def test_waiting_in_vain_for_readiness(sockets: ControlSockets, clock: Clock, prints: Callable[..., str]) -> None:
    sockets.serve_status(SOCKET, not_ready())
    assert prints(*COMMAND, "--wait", "--timeout", "2", status=6) == "relay first: not ready (provisioning)\n"
    assert clock.now == pytest.approx(52, abs=0.3)


@pytest.mark.usefixtures("sockets")
def test_waiting_in_vain_for_a_service(clock: Clock, fails: Callable[..., Any]) -> None:
    assert fails(*COMMAND, "--wait", "--timeout", "1", status=6).code == "WGV-E087"
    assert clock.now == pytest.approx(51, abs=0.3)


def test_waiting_without_patience(sockets: ControlSockets, clock: Clock, prints: Callable[..., str]) -> None:
    sockets.serve_status(SOCKET, not_ready())
    assert prints(*COMMAND, "--wait", "--timeout", "0", status=6)
    assert not clock.slept
