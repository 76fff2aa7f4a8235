from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lab.programs.production import recorded
from lab.qemu.backends import GuestBackend, PairBackend
from lab.qemu.security_module import CuseModule
from lab.topology import Node
from wgvsock.addresses import PROVISIONING_PORT, WIREGUARD_PORT


def test_which_machine_holds_a_node(tmp_path: Path) -> None:
    guest, pair = GuestBackend("x", directory=tmp_path), PairBackend("y", directory=tmp_path)
    assert guest.moved == frozenset()
    assert pair.moved == {Node.POD, Node.NODE, Node.EXTERNAL}
    assert guest.machine_of(Node.POD) is None


def test_the_relay_of_the_pair_dials_its_host_over_vsock(tmp_path: Path) -> None:
    pair = PairBackend("x", directory=tmp_path)
    assert str(pair.relay_address(WIREGUARD_PORT)) == "vsock:2:51820"
    assert str(pair.relay_address(PROVISIONING_PORT)) == "vsock:2:51821"
    guest = GuestBackend("x", directory=tmp_path)
    assert str(guest.relay_address(WIREGUARD_PORT)) == f"unix:{tmp_path}/relay-51820"


def test_the_enclave_listens_for_its_parent_alone(tmp_path: Path) -> None:
    config = GuestBackend("x", directory=tmp_path).enclave_config()
    assert config["listen"] == "vsock:4294967295:51820"
    assert config["provisioning_listen"] == "vsock:4294967295:51821"
    assert config["parent_cid"] == 2


@pytest.mark.parametrize(
    ("timings", "command"),
    [
        (None, ["/usr/bin/python3", "-m", "lab.programs.production", "/lab/entropy.log", "enclave", "run"]),
        ({"rekey_after_time": 1.5}, ["/usr/bin/python3", "-m", "lab.programs.enclave"]),
    ],
)
def test_only_other_timings_take_the_place_of_the_production_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timings: dict[str, float] | None, command: list[str]
) -> None:
    class Guest:
        def channel(self) -> Guest:
            return self

        def write_file(self, path: str, data: bytes) -> None:
            written[path] = data

    written: dict[str, bytes] = {}
    spawned: list[list[str]] = []
    monkeypatch.setattr(GuestBackend, "machine_of", lambda _self, _node: Guest())
    monkeypatch.setattr(CuseModule, "boot", lambda _self: None)
    monkeypatch.setattr(GuestBackend, "spawn", lambda _self, _node, argv, *, name: spawned.append([name, *argv]))
    GuestBackend("x", directory=tmp_path).start_enclave(timings=timings)
    (argv,) = spawned
    assert argv[: len(command) + 1] == ["enclave", *command]
    assert (json.dumps(timings) in argv) == bool(timings)
    assert b"parent_cid = 2" in written["/lab/enclave.toml"]


def test_draws_that_can_be_keys_are_written_down() -> None:
    stream = io.BytesIO()
    draw = recorded(stream, bytes)
    assert draw(32) == bytes(32)
    assert draw(16) == bytes(16)
    assert stream.getvalue() == b"00" * 32 + b"\n"
