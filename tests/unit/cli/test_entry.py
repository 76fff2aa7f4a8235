"""The command itself: its imports, and how each kind of end becomes an exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.control_sockets import ControlSockets
from wgvsock import __version__
from wgvsock.cli import main
from wgvsock.cli.entry import COMMANDS


def ends(*argv: str) -> object:
    """Return the status of a command that argparse ends."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    return ended.value.code


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends("--version") == 0
    assert capsys.readouterr().out == f"wgvsock {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends("--help") == 0
    out = capsys.readouterr().out
    for name, about in COMMANDS.items():
        assert f"\n    {name} " in out
        assert about.split()[0] in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(name, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: wgvsock {name} [-h]")
    assert len(out.splitlines()) > 5  # it was made by its module, not only named


@pytest.mark.parametrize("argv", [(), ("bogus",), ("keys",), ("keys", "bogus"), ("keys", "gen", "--bogus")])
def test_a_wrong_command_line(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(*argv) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("usage: wgvsock")


@pytest.mark.parametrize(
    ("argv", "suggestion"),
    [
        (("sttatus",), "'sttatus', did you mean 'status'?"),
        (("keys", "gne"), "'gne', did you mean 'gen'?"),
        (("config", "init", "rellay"), "'rellay', did you mean 'relay'?"),
        (("keys", "gen", "--sining"), "--sining, did you mean --signing?"),
        (("status", "--jsno=1"), "--jsno=1, did you mean --json?"),
    ],
)
def test_what_was_probably_meant(argv: tuple[str, ...], suggestion: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(*argv) == 2
    assert capsys.readouterr().err.endswith(f"{suggestion}\n")


@pytest.mark.parametrize("argv", [("keys", "gen", "--quite-another"), ("keys", "gen", "extra"), ("quite-another",)])
def test_where_nothing_is_near(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(*argv) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_arguments_come_from_the_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["wgvsock", "config", "init", "relay"])
    assert main() == 0
    assert "[enclave]" in capsys.readouterr().out


def test_an_error_becomes_three_lines_and_its_own_status(fails: Callable[..., Any]) -> None:
    failure = fails("config", "check", "relay", "/no/such/file", status=2)
    assert failure.code == "WGV-E004"


def test_interrupted(
    sockets: ControlSockets, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = {
        "schema": "wgvsock/v1",
        "role": "relay",
        "name": "relay",
        "state": "ready",
        "ready": True,
        "provisioning": {},
        "wireguard": {"peers": []},
        "counters": {"dropped": {}},
    }
    sockets.serve_status("/run/relay.sock", status)
    monkeypatch.setattr("wgvsock.cli.status.time.sleep", lambda _: signal.raise_signal(signal.SIGINT))
    assert main(["status", "--watch", "--socket", "/run/relay.sock"]) == 130
    captured = capsys.readouterr()
    assert captured.out == "relay relay: ready\n"
    assert not captured.err


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgvsock.cli.config.importlib", None)
    with pytest.raises(AttributeError):
        main(["config", "init", "relay"])


UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
"""The environment of a child that imports only what the command imports, nothing for coverage."""


# What is imported: a shell's completion or a probe should not wait for cryptography.

IMPORTS = """
import json, sys
before = set(sys.modules)
{code}
json.dump(sorted(set(sys.modules) - before), sys.stderr)
"""
HEAVY = {"asyncio", "cryptography", "pyroute2", "cbor2", "ssl", "ipaddress", "tomllib", "subprocess"}


def imported_by(code: str) -> set[str]:
    script = IMPORTS.format(code=code)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=UNMEASURED)
    return set(json.loads(ended.stderr))


def test_the_command_alone_imports_nothing_heavy() -> None:
    modules = imported_by("import wgvsock.cli.entry")
    assert not modules & HEAVY
    assert {name for name in modules if name.startswith("wgvsock.cli.")} == {
        "wgvsock.cli.start",
        "wgvsock.cli.entry",
        "wgvsock.cli.ending",
        "wgvsock.cli.output",
    }


def test_a_subcommand_imports_what_it_needs(tmp_path: Path) -> None:
    modules = imported_by("from wgvsock.cli import main; main(['keys', 'gen'])")
    assert {"wgvsock.cli.keys", "cryptography"} <= modules
    assert not modules & {"asyncio", "pyroute2", "wgvsock.cli.relay", "wgvsock.cli.status", "wgvsock.relay"}


def test_a_configuration_is_checked_without_the_network_s_libraries() -> None:
    modules = imported_by("from wgvsock.cli import main; main(['config', 'init', 'enclave'])")
    assert "wgvsock.cli.config" in modules
    assert not modules & {"pyroute2", "asyncio", "cryptography", "wgvsock.tunnel"}
