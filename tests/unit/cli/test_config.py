"""Configurations from their template to their check: strict, with the line and the nearest key of what is wrong."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wgvsock.enclave import config as enclave
from wgvsock.relay import config as relay

ROLES = ("relay", "enclave")
LOAD: dict[str, Callable[[str], object]] = {"relay": relay.load, "enclave": enclave.load}


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(role: str, tmp_path: Path, prints: Callable[..., str]) -> Path:
    """What ``config init`` prints, in a file."""
    path = tmp_path / f"{role}.toml"
    path.write_text(prints("config", "init", role))
    return path


def test_the_first_configuration_passes_its_check(role: str, file: Path, prints: Callable[..., str]) -> None:
    assert prints("config", "check", role, str(file)) == f"{file}: ok\n"


def test_a_check_as_json(role: str, file: Path, prints_json: Callable[..., dict[str, Any]]) -> None:
    answer = prints_json("config", "check", role, str(file))
    assert answer == {"schema": "wgvsock/v1", "ok": True, "role": role, "file": str(file)}


def test_what_is_shown_is_the_same_configuration(role: str, file: Path, prints: Callable[..., str]) -> None:
    shown = file.with_name("shown.toml")
    shown.write_text(prints("config", "show", role, str(file)))
    assert LOAD[role](str(shown)) == LOAD[role](str(file))
    assert len(tomllib.loads(shown.read_text())) > len(tomllib.loads(file.read_text()))  # the defaults too


def test_settings_as_json(role: str, file: Path, prints_json: Callable[..., dict[str, Any]]) -> None:
    answer = prints_json("config", "show", role, str(file))
    assert (answer["role"], answer["file"]) == (role, str(file))
    assert answer["settings"]["runtime_directory"] == "/run/wgvsock"
    assert answer["settings"]["name"] == role


def test_the_default_path(role: str, file: Path, prints: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert {relay.DEFAULT_PATH, enclave.DEFAULT_PATH} == {"/etc/wgvsock/relay.toml", "/etc/wgvsock/enclave.toml"}
    monkeypatch.setattr({"relay": relay, "enclave": enclave}[role], "DEFAULT_PATH", str(file))
    assert prints("config", "check", role) == f"{file}: ok\n"


@pytest.mark.parametrize("verb", ["check", "show"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_one(
    role: str, file: Path, fails: Callable[..., Any], verb: str, options: tuple[str, ...]
) -> None:
    wrong, right = {"relay": ("uplnk", "uplink"), "enclave": ("parent_cidd", "parent_cid")}[role]
    table = "\n[nat]\n" if role == "relay" else "\n"
    text = file.read_text().replace("[nat]", "#") + table + f"{wrong} = 3\n"
    file.write_text(text)
    failure = fails("config", verb, role, str(file), *options, status=2)
    assert failure.code == "WGV-E002"
    assert f"{file}, line {text.count(chr(10))}: " in failure.what
    assert f'"{wrong}"' in failure.what
    assert failure.fix == f'the nearest valid key is "{right}"'


def test_a_wrong_value_is_named_with_its_line(role: str, file: Path, fails: Callable[..., Any]) -> None:
    text = 'log_level = "loud"\n' + file.read_text()
    file.write_text(text)
    failure = fails("config", "check", role, str(file), status=2)
    assert failure.code == "WGV-E003"
    assert f"{file}, line 1: " in failure.what
    assert '"log_level"' in failure.what


def test_a_file_that_is_not_there(role: str, tmp_path: Path, fails: Callable[..., Any]) -> None:
    failure = fails("config", "check", role, str(tmp_path / "missing.toml"), status=2)
    assert (failure.code, failure.why) == ("WGV-E004", "No such file or directory")


def test_a_file_of_the_other_role(role: str, file: Path, fails: Callable[..., Any]) -> None:
    (other,) = set(ROLES) - {role}
    if role == "enclave":
        file.write_text("parent_cid = 3\n")
    assert fails("config", "check", other, str(file), status=2).code in {"WGV-E002", "WGV-E003"}


def test_a_file_of_wg_quick_can_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    from wgvsock.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["config", "from-wg-quick", "--help"])
    assert ended.value.code == 0
    assert "from-wg-quick" in capsys.readouterr().out
