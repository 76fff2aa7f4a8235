"""Known facts about an enclave go into its relay's first configuration."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wgvsock.cli import main
from wgvsock.relay import config
from wgvsock.relay.sections import PublishSettings


def test_all_at_once(prints: Callable[..., str], tmp_path: Path) -> None:
    pcrs = {f"PCR{index}": f"{index + 1:096x}" for index in (0, 1, 2)}
    (tmp_path / "build.json").write_text(json.dumps({"Measurements": pcrs}))
    arguments = ("--pcrs", str(tmp_path / "build.json"), "--cid", "17", "--publish", "443", "--publish", "53:5353/udp")
    text = prints("config", "init", "relay", *arguments)
    (tmp_path / "relay.toml").write_text(text)
    (spec,) = config.load(str(tmp_path / "relay.toml")).specs()
    assert str(spec.enclave.address) == "vsock:17:51820"
    assert spec.nat.publish == (PublishSettings("tcp", 443), PublishSettings("udp", 53, 5353))
    assert not spec.attestation.has_placeholder
    assert main(("config", "check", "relay", str(tmp_path / "relay.toml"))) == 0


def test_what_is_not_told_stays(prints: Callable[..., str]) -> None:
    plain = prints("config", "init", "relay")
    cid = prints("config", "init", "relay", "--cid", "1234")
    assert cid == plain.replace('"vsock:16:51820"            #', '"vsock:1234:51820"          #')
    published = tomllib.loads(prints("config", "init", "relay", "--publish", "8443"))
    assert published["nat"]["publish"] == [{"protocol": "tcp", "port": 8443}]
    assert published["enclave"]["address"] == "vsock:16:51820"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--cid", value) for value in ("3", "4294967295", "-1", "x", "")),
        *(("--publish", value) for value in ("0", "65536", "443/sctp", "443:0", "443:", "x", "", "٤")),
    ],
)
def test_a_wrong_value(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(("config", "init", "relay", f"{option}={value}"))
    assert ended.value.code == 2
    assert f"argument {option}: " in capsys.readouterr().err


def test_the_enclave_has_neither(fails: Callable[..., Any]) -> None:
    assert "for the enclave" in fails("config", "init", "enclave", "--cid", "16", status=2).what
