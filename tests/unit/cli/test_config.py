"""Configurations from template to check: strict, with the line and the nearest key of each mistake."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wgvsock.enclave import config as enclave
from wgvsock.relay import config as relay

ROLES = ("relay", "enclave")
PLACEHOLDER = "00" * 48
LOAD: dict[str, Callable[[str], object]] = {"relay": relay.load, "enclave": enclave.load}


@pytest.fixture(params=ROLES)
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def file(role: str, tmp_path: Path, prints: Callable[..., str]) -> Path:
    """The output of ``config init``, in a file."""
    path = tmp_path / f"{role}.toml"
    path.write_text(prints("config", "init", role).replace(PLACEHOLDER, "ab" * 48))
    return path


def test_the_first_configuration_passes_its_check(role: str, file: Path, prints: Callable[..., str]) -> None:
    lines = prints("config", "check", role, str(file)).splitlines()
    assert lines[0] == f"{file}: ok"
    assert [line.split(":")[0] for line in lines[1:]] == (["warning", "why", "fix"] if role == "relay" else [])


def test_a_check_as_json(role: str, file: Path, prints_json: Callable[..., dict[str, Any]]) -> None:
    answer = prints_json("config", "check", role, str(file))
    warnings = answer.pop("warnings")
    assert answer.pop("problems") == []
    assert answer == {"schema": "wgvsock/v1", "ok": True, "role": role, "file": str(file)}
    assert [warning["where"].startswith(str(file)) for warning in warnings] == ([True] if role == "relay" else [])


USELESS = """
default = "deny"
[[egress.allow]]
network = "10.0.0.0/8"
[[egress.allow]]
network = "10.1.0.0/16"
"""


def test_a_rule_that_can_never_match_is_warned_of_with_its_line(
    role: str, file: Path, prints: Callable[..., str]
) -> None:
    text = file.read_text()
    text = text.replace("[egress]\n", f"[egress]{USELESS}", 1) if role == "relay" else text + "[egress]" + USELESS
    file.write_text(text)
    warning, why, fix = prints("config", "check", role, str(file)).splitlines()[1:]
    number = text.splitlines().index('network = "10.1.0.0/16"')  # its table's header is the line above
    assert warning == f'warning: {file}, line {number}: the rule "allow tcp to 10.1.0.0/16" has no effect'
    assert why.startswith("why: it never matches")
    assert fix == "fix: remove one of the two"
    assert prints("config", "check", role, str(file), "--strict", status=2)


def test_a_strict_check_without_warnings(tmp_path: Path, prints: Callable[..., str]) -> None:
    file = tmp_path / "enclave.toml"
    file.write_text("")
    assert prints("config", "check", "enclave", str(file), "--strict") == f"{file}: ok\n"


@pytest.mark.parametrize(("found", "warned"), [(["nft", "iptables"], False), (["iptables"], True), ([], False)])
def test_names_are_warned_of_where_there_is_iptables_alone(
    tmp_path: Path, prints: Callable[..., str], tools: Callable[[str, str], None], found: list[str], warned: bool
) -> None:
    for tool in found:
        tools(tool, "exit 1")
    file = tmp_path / "relay.toml"
    text = prints("config", "init", "relay").replace('#default = "deny"', 'default = "deny"')
    text = text.replace(PLACEHOLDER, "ab" * 48)
    file.write_text(text + '[[egress.allow]]\nname = "www.lab.test"\n')
    assert ("this machine has only iptables" in prints("config", "check", "relay", str(file))) == warned


def test_what_stops_the_relay_later_is_a_problem_with_its_line(
    tmp_path: Path, prints: Callable[..., str], prints_json: Callable[..., dict[str, Any]]
) -> None:
    file = tmp_path / "relay.toml"
    text = prints("config", "init", "relay").replace('#options = ["ndots:5"]', 'options = ["nodts:5"]')
    file.write_text(text)
    lines = prints("config", "check", "relay", str(file), status=2).splitlines()
    assert lines[0] == f"{file}: not ok"
    zeros, option = (text.splitlines().index(line) + 1 for line in (f'pcr0 = "{PLACEHOLDER}"', 'options = ["nodts:5"]'))
    assert lines[1].startswith(f"problem: {file}, line {zeros}: this set of measurements matches no enclave")
    assert lines[4] == f"problem: {file}, line {option}: the enclave would refuse its settings"
    assert lines[5] == "why: a resolver option is not on the list of allowed ones"
    answer = prints_json("config", "check", "relay", str(file), status=2)
    assert (answer["ok"], len(answer["problems"])) == (False, 2)


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
    assert prints("config", "check", role).splitlines()[0] == f"{file}: ok"


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


@pytest.mark.parametrize("role", ["relay", "enclave"])
def test_a_schema_for_editors(prints: Callable[..., str], role: str) -> None:
    schema = json.loads(prints("config", "schema", role))
    assert schema["title"] == f"{role}.toml of wgvsock"
    assert schema["properties"]["log_level"]["enum"] == ["debug", "info", "warning", "error"]
    # The first line of the template names the file that the template says to write.
    first = prints("config", "init", role).splitlines()[0]
    assert first == f"#:schema ./{role}.schema.json"
    assert f"wgvsock config schema {role} > {role}.schema.json" in prints("config", "init", role)
