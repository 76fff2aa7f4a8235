"""`wgvsock enclave run`: with the real module or without, the defaults, the application's command and status."""

from __future__ import annotations

import errno
import gc
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.nsm.signer import FakeNsm
from tests.unit.service_pair import ServicePair
from wgvsock import settings
from wgvsock.cli import enclave, main
from wgvsock.cli.enclave import read_config
from wgvsock.cli.services import run_service
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.enclave.identity import seed_kernel


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServicePair:
    """Both machines in memory."""
    made = ServicePair(tmp_path)
    monkeypatch.setattr("wgvsock.machine.enclave.LinuxEnclaveMachine", lambda: made.enclave_machine)
    return made


@pytest.fixture
def file(pair: ServicePair) -> Path:
    """The pair's enclave.toml."""
    path = pair.folder / "enclave.toml"
    path.write_text(settings.format_toml(pair.enclave_config))
    return path


# The configuration.


def test_a_named_configuration(file: Path, pair: ServicePair) -> None:
    assert read_config(str(file)) == pair.enclave_config


def test_the_default_configuration(file: Path, pair: ServicePair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enclave, "DEFAULT_PATH", str(file))
    assert read_config(None) == pair.enclave_config
    file.unlink()
    assert read_config(None) == EnclaveConfig()


def test_a_named_configuration_has_to_be_there(tmp_path: Path, fails: Callable[..., Any]) -> None:
    failure = fails("enclave", "run", "-c", str(tmp_path / "missing.toml"), status=2)
    assert failure.code == "WGV-E004"


def test_a_wrong_key(file: Path, fails: Callable[..., Any]) -> None:
    file.write_text("parent_cid = 3\nkey_pcrs = 16\n")
    failure = fails("enclave", "run", "-c", str(file), "--", "true", status=2)
    assert (failure.code, failure.fix) == ("WGV-E002", 'the nearest valid key is "key_pcr"')
    assert f"{file}, line 2: " in failure.what


# The security module.


@pytest.mark.usefixtures("loggers")
def test_without_the_module(file: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., Any]) -> None:
    really_open = os.open

    def open_device(path: Any, *arguments: Any, **options: Any) -> int:
        if path == "/dev/nsm":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return really_open(path, *arguments, **options)

    monkeypatch.setattr("wgvsock.devices.nsm.os.open", open_device)
    failure = fails("enclave", "run", "-c", str(file), status=7)
    assert failure.code == "WGV-E075"
    assert "/dev/nsm" in failure.what
    assert failure.why == "No such file or directory"


def test_no_option_names_another_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["enclave", "run", "--help"])
    options = {word.strip("[],") for word in capsys.readouterr().out.split() if word.strip("[],").startswith("-")}
    assert options == {"-h", "--help", "-c", "--config", "--"}


class Module(FakeNsm):
    """The device /dev/nsm, which can be closed. It may signal this process on the first request."""

    closed = False
    number: signal.Signals | None = None

    def request(self, request: bytes) -> bytes:
        number, self.number = self.number, None
        if number is not None:
            signal.raise_signal(number)
        return super().request(request)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def module(pair: ServicePair, loggers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """What `NsmDevice` opens on this machine. The kernel's own generator is untouched."""
    made = Module(pair.authority, pair.lab_enclave)
    monkeypatch.setattr("wgvsock.devices.nsm.NsmDevice", lambda: made)
    monkeypatch.setattr(seed_kernel, "__defaults__", (Path(os.devnull),))
    yield made
    gc.unfreeze()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_and_takes_everything_back(
    pair: ServicePair, file: Path, module: Module, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    module.number = number
    assert main(["enclave", "run", "-c", str(file)]) == 0
    assert module.closed
    assert not list(pair.folder.glob("enclave/*.sock"))
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.endswith('msg="the agent has stopped and undone all its changes"\n')


def test_a_failure_closes_the_module(pair: ServicePair, file: Path, module: Module, fails: Callable[..., Any]) -> None:
    pair.enclave_kernel.refuses = {"bring_up"}
    failure = fails("enclave", "run", "-c", str(file), status=7, logs=True)
    assert failure.what == "cannot bring_up"
    assert module.closed


@pytest.mark.usefixtures("loggers", "module")
def test_busy_polling_is_the_event_loop_s(file: Path, pair: ServicePair, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[int] = []

    def run_service(start: object, *, busy_poll_us: int) -> int:
        windows.append(busy_poll_us)
        return 0

    monkeypatch.setattr("wgvsock.cli.enclave.run_service", run_service)
    file.write_text(settings.format_toml(replace(pair.enclave_config, busy_poll_us=250)))
    assert main(["enclave", "run", "-c", str(file)]) == 0
    assert windows == [250]


# The application. These run in real time, for their processes do.


@pytest.fixture
def with_relay(pair: ServicePair, module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay runs in the agent's own event loop."""

    def run_both(start: Callable[[], Any], **options: Any) -> int:
        def start_both() -> Any:
            pair.start_relay()
            return start()

        return run_service(start_both, **options)

    monkeypatch.setattr(enclave, "run_service", run_both)


@pytest.mark.slow
@pytest.mark.usefixtures("with_relay")
@pytest.mark.parametrize("separator", [["--"], []])
def test_the_application_s_status_is_ours(file: Path, separator: list[str]) -> None:
    assert main(["enclave", "run", "-c", str(file), *separator, "sh", "-c", 'exit "$1"', "--", "7"]) == 7


@pytest.mark.slow
@pytest.mark.usefixtures("with_relay")
@pytest.mark.parametrize(("name", "status"), [("HUP", 129), ("USR1", 138), ("USR2", 140), ("TERM", 0), ("INT", 0)])
def test_signals_go_to_the_application(file: Path, name: str, status: int) -> None:
    # It sends the signal to us, its parent; without our help it would sleep on.
    script = f"kill -{name} $PPID; exec sleep 600"
    assert main(["enclave", "run", "-c", str(file), "--", "sh", "-c", script]) == status
