"""`wgvsock config show relay` shows what is decided at the start, and what needs a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_what_is_shown_says_which_keys_need_a_restart_and_what_is_decided(
    tmp_path: Path, prints: Callable[..., str], prints_json: Callable[..., dict[str, Any]]
) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(prints("config", "init", "relay"))
    shown = prints("config", "show", "relay", str(file)).splitlines()
    assert 'log_level = "info"  # restart to change' in shown
    assert "persistent_keepalive = 25" in shown
    assert "# enclave: provisioning address = vsock:16:51821" in shown
    assert any(line.startswith("# enclave: uplink = ") for line in shown)
    answer = prints_json("config", "show", "relay", str(file))
    assert answer["reloadable"]["log_level"] is False
    assert answer["reloadable"]["attestation.pcr_sets.pcr0"] is True
    assert answer["decided"]["enclave"]["signing key"] == "/run/wgvsock/relay.key"


def test_what_cannot_be_decided_here_says_why(
    tmp_path: Path, prints_json: Callable[..., dict[str, Any]], prints: Callable[..., str]
) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(prints("config", "init", "relay").replace('#uplink = "eth0"', 'uplink = "nowhere0"'))
    decided = prints_json("config", "show", "relay", str(file))["decided"]["enclave"]
    assert decided["uplink"].startswith("none on this machine: ")
    assert "mtu" not in decided
