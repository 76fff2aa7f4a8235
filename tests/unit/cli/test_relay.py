"""`wgvsock relay`: the production entry point on a machine in memory, ended and controlled by real signals."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.service_pair import ServicePair
from wgvsock import settings
from wgvsock.cli import main


class AtLines(logging.Handler):
    """Acts when the service logs a line, once for each. Usually it sends this process a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.acts: dict[str, Callable[[], object]] = {}
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        act = self.acts.pop(record.getMessage(), None)
        if act is not None:
            act()

    def send(self, number: signal.Signals, line: str) -> None:
        """Have a signal sent at a line."""
        self.acts[line] = lambda: signal.raise_signal(number)


ALONE = "the enclave is not provisioned"
"""The log of a relay without an enclave, once it runs and has tried."""


@pytest.fixture
def at(loggers: None) -> Iterator[AtLines]:
    """The action for each line."""
    handler = AtLines()
    ours = logging.getLogger("wgvsock")
    ours.addHandler(handler)
    yield handler
    ours.removeHandler(handler)
    gc.unfreeze()


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServicePair:
    """The machine. Its enclave is not running."""
    made = ServicePair(tmp_path)
    monkeypatch.setattr("wgvsock.machine.relay.LinuxRelayMachine", lambda: made.machine)
    return made


@pytest.fixture
def file(pair: ServicePair) -> Path:
    """The pair's relay.toml."""
    path = pair.folder / "relay.toml"
    path.write_text(settings.format_toml(pair.config))
    return path


def run(file: Path) -> int:
    return main(["relay", "run", "-c", str(file)])


@pytest.mark.usefixtures("loggers")
def test_busy_polling_is_the_event_loop_s(file: Path, pair: ServicePair, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[int] = []

    def run_service(start: object, *, busy_poll_us: int) -> int:
        windows.append(busy_poll_us)
        return 0

    monkeypatch.setattr("wgvsock.cli.relay.run_service", run_service)
    assert run(file) == 0
    config = replace(pair.config, interface=replace(pair.config.interface, busy_poll_us=250))
    file.write_text(settings.format_toml(config))
    assert run(file) == 0
    assert windows == [0, 250]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_and_takes_everything_back(
    pair: ServicePair, file: Path, at: AtLines, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    at.send(number, ALONE)
    assert run(file) == 0
    assert pair.filter.history  # there was a table
    assert pair.filter.rules is None
    assert at.lines[-1] == "the relay has stopped and reverted its changes"
    assert not (pair.folder / "relay" / "relay.sock").exists()
    captured = capsys.readouterr()
    assert not captured.out
    assert " level=info at=relay.service msg=" in captured.err


def test_stopping_for_a_restart_leaves_the_closed_filter(pair: ServicePair, file: Path, at: AtLines) -> None:
    at.send(signal.SIGUSR2, ALONE)
    assert run(file) == 0
    assert pair.filter.rules is not None
    assert not pair.filter.is_open


def test_hangup_reads_the_configuration_again(pair: ServicePair, file: Path, at: AtLines) -> None:
    def change() -> None:
        file.write_text(file.read_text().replace("[interface]\n", "[interface]\nmtu = 1400\n"))
        signal.raise_signal(signal.SIGHUP)

    at.acts[ALONE] = change
    at.send(signal.SIGTERM, "the configuration was reloaded")
    assert run(file) == 0
    assert pair.relay_kernel.mtus["wg0"] == 1400


def test_a_wrong_configuration_is_not_reloaded(pair: ServicePair, file: Path, at: AtLines) -> None:
    def change() -> None:
        file.write_text(file.read_text().replace("[interface]\n", "[interface]\nmtuu = 1400\n"))
        signal.raise_signal(signal.SIGHUP)

    at.acts[ALONE] = change
    at.send(signal.SIGTERM, "the configuration was not reloaded")
    assert run(file) == 0
    assert pair.relay_kernel.mtus["wg0"] == 1500


def test_usr1_attests_again(file: Path, at: AtLines) -> None:
    at.send(signal.SIGUSR1, ALONE)
    at.send(signal.SIGTERM, "attestation was requested")
    assert run(file) == 0
    assert not at.acts


@pytest.mark.usefixtures("at")
def test_the_log_level_is_the_configuration_s(file: Path, fails: Callable[..., Any]) -> None:
    file.write_text(file.read_text().replace('log_level = "info"', 'log_level = "error"'))
    key = file.parent / "relay" / "relay.key"
    key.parent.mkdir(mode=0o700)
    key.touch(mode=0o600)
    assert fails("relay", "run", "-c", str(file), status=2).code == "WGV-E081"  # and not one line of the start


# What it cannot start without.


@pytest.fixture
def without_tun(pair: ServicePair, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The real `open_tun` on a machine where opening, or configuring, /dev/net/tun fails."""
    from wgvsock.devices.tun import open_tun

    monkeypatch.setattr(pair.machine, "open_tun", open_tun)
    really_open = os.open

    def refuse(number: int) -> None:
        def open_device(path: Any, *arguments: Any, **options: Any) -> int:
            if path == "/dev/net/tun":
                raise OSError(number, os.strerror(number))
            return really_open(path, *arguments, **options)

        def make_node(*_: Any) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr("wgvsock.devices.tun.os.open", open_device)
        monkeypatch.setattr("wgvsock.devices.tun.os.mknod", make_node)

    return refuse


@pytest.mark.usefixtures("at")
def test_without_the_tun_device(
    file: Path, without_tun: Callable[[int], None], pair: ServicePair, fails: Callable[..., Any]
) -> None:
    without_tun(errno.ENOENT)
    failure = fails("relay", "run", "-c", str(file), status=7, logs=True)
    assert (failure.code, failure.what) == ("WGV-E070", "cannot open /dev/net/tun")
    assert "does not exist" in failure.why
    assert pair.filter.rules is None


@pytest.mark.usefixtures("at")
@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_with_a_forbidden_tun_device(
    file: Path, without_tun: Callable[[int], None], fails: Callable[..., Any], number: int
) -> None:
    without_tun(number)
    failure = fails("relay", "run", "-c", str(file), status=7, logs=True)
    assert failure.code == "WGV-E071"
    assert "CAP_NET_ADMIN" in failure.fix


@pytest.mark.usefixtures("at")
def test_without_net_admin(
    file: Path, pair: ServicePair, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., Any]
) -> None:
    from wgvsock.devices.tun import TUN_PATH, open_tun

    open_here = os.open

    def open_another(path: str, *arguments: Any, **options: Any) -> int:
        """A device that everybody may open. The path itself is a constant of the compiled build."""
        return open_here(os.devnull if path == TUN_PATH else path, *arguments, **options)

    def refuse(*_: Any) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(pair.machine, "open_tun", open_tun)
    monkeypatch.setattr(os, "open", open_another)
    monkeypatch.setattr("wgvsock.devices.tun.fcntl.ioctl", refuse)
    failure = fails("relay", "run", "-c", str(file), status=7, logs=True)
    assert (failure.code, failure.what) == ("WGV-E071", "cannot create the interface wg0")
    assert (failure.why, failure.fix) == ("Operation not permitted", "run with CAP_NET_ADMIN")


def test_a_wrong_key_in_the_configuration(file: Path, fails: Callable[..., Any]) -> None:
    text = file.read_text().replace("persistent_keepalive", "persistent_keepalives")
    file.write_text(text)
    line = text.splitlines().index("persistent_keepalives = 25") + 1
    failure = fails("relay", "run", "-c", str(file), status=2)
    assert failure.code == "WGV-E002"
    assert f"{file}, line {line}: " in failure.what
    assert failure.fix == 'the nearest valid key is "persistent_keepalive"'


def test_no_secret_is_printed(file: Path, pair: ServicePair, at: AtLines, capsys: pytest.CaptureFixture[str]) -> None:
    at.send(signal.SIGTERM, ALONE)
    file.write_text(file.read_text().replace('log_level = "info"', 'log_level = "debug"'))
    assert run(file) == 0
    seed = (pair.folder / "relay" / "relay.key").read_text().strip()
    assert len(seed) == 44
    assert seed not in capsys.readouterr().err
