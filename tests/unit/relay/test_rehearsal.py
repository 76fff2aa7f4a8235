"""Whatever would stop a relay after its file was read is found before: each kind, with its key."""

from __future__ import annotations

import asyncio
import base64
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, cast

import pytest

from wgvsock import settings
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.rehearsal import rehearse, rehearse_here
from wgvsock.settings import KeyPath

POLICY = """
[[attestation.pcr_sets]]
pcr0 = "{0}"
pcr1 = "{0}"
pcr2 = "{0}"
"""
GOOD = POLICY.format("ab" * 48)
TWO = """
[[enclaves]]
name = "one"
address = "vsock:16:51820"
[[enclaves]]
name = "two"
address = "vsock:17:51820"
"""
ONE = '[enclave]\naddress = "vsock:16:51820"\n'


def problems(text: str, policy: str = GOOD) -> list[KeyPath]:
    return [each.key for each in rehearse(settings.parse(RelayConfig, text + policy))]


def ends(enclave: str, relay: str) -> str:
    return f'{ONE}addresses = ["{enclave}"]\n[interface]\naddresses = ["{relay}"]\n'


def test_a_right_configuration_has_none() -> None:
    assert problems(ONE) == []
    assert problems('[launch]\nimage = "/a.eif"\n') == []
    assert problems(ONE + '[dns]\nservers = ["127.0.0.53"]\n') == []  # on loopback: the relay forwards


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (ONE + '[dns]\noptions = ["nodts:5"]\n', ("dns", "options")),
        (ONE + f"[dns]\noptions = {['rotate'] * 9}\n", ("dns", "options")),
        (ONE + '[dns]\nsearch = ["a b"]\n', ("dns", "search")),
        (ONE + f"[dns]\nsearch = {[f'd{n}.test' for n in range(7)]}\n", ("dns", "search")),
        (ONE + '[dns]\nservers = ["127.0.0.1", "10.0.0.1"]\n', ("dns", "servers")),
        (ONE + f"[dns]\nservers = {[f'10.0.0.{n}' for n in range(4)]}\n", ("dns", "servers")),
        (ONE + '[dns]\nservers = ["198.18.73.3"]\n', ("dns", "servers")),  # the tunnel's own prefix
        (ONE + 'routes = ["127.0.0.0/8"]\n', ("enclave", "routes")),
        (ONE + 'routes = ["10.0.0.0/8", "10.0.0.0/8"]\n', ("enclave", "routes")),
        (ONE + f"routes = {[f'10.{n}.0.0/16' for n in range(17)]}\n", ("enclave", "routes")),
        (ends("10.73.0.0/24", "10.73.0.1/24"), ("enclave", "addresses")),
        (ends("10.73.0.1/24", "10.73.0.1/24"), ("enclave", "addresses")),
        (ends("10.73.0.2/24", "10.74.0.1/24"), ("enclave", "addresses")),
        (ends("127.0.0.2/8", "127.0.0.1/8"), ("enclave", "addresses")),
        (ONE + '[interface]\nname = "lo"\n', ("interface", "name")),
        (f'runtime_directory = "/run/{"x" * 100}"\n' + ONE, ("runtime_directory",)),
    ],
)
def test_what_the_enclave_or_the_kernel_would_refuse(text: str, key: KeyPath) -> None:
    assert problems(text.replace("'", '"')) == [key]


def test_placeholders_match_no_enclave_but_one_in_debug_mode() -> None:
    zeros = POLICY.format("00" * 48)
    assert problems(ONE, zeros) == [("attestation", "pcr_sets", 0, "pcr0")]
    assert problems(ONE, GOOD + zeros) == [("attestation", "pcr_sets", 1, "pcr0")]
    assert problems(ONE + "[attestation]\nallow_debug = true\n", zeros) == []


def test_a_signing_key_that_is_there_is_read(tmp_path: Path) -> None:
    key = tmp_path / "signing.key"
    text = ONE + f'[provisioning]\nsigning_key_file = "{key}"\n'
    assert problems(text) == []  # it may be on another machine
    key.write_text("no key")
    key.chmod(0o600)
    assert problems(text) == [("provisioning", "signing_key_file")]
    key.write_bytes(base64.b64encode(bytes(range(32))))
    assert problems(text) == []


def test_of_several_enclaves_the_own_table_is_named_and_a_common_one_once(tmp_path: Path) -> None:
    key = tmp_path / "signing.key"
    key.write_text("no key")
    key.chmod(0o600)
    two = "".join(
        f'[[enclaves]]\nname = "e{n}"\naddress = "vsock:{16 + n}:51820"\nroutes = ["127.0.0.0/8"]\n' for n in (0, 1)
    )
    common = '[dns]\noptions = ["nodts"]\n'
    assert problems(two + common) == [("enclaves", 0, "routes"), ("dns", "options"), ("enclaves", 1, "routes")]
    own = '[[enclaves]]\nname = "a"\naddress = "vsock:16:1"\ninterface = "all"\n'
    own += f'signing_key_file = "{key}"\n[enclaves.dns]\nsearch = ["a b"]\n'
    found = problems(own)
    assert found == [("enclaves", 0, "interface"), ("enclaves", 0, "dns", "search"),
                     ("enclaves", 0, "signing_key_file")]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (ends("10.73.0.2/24", "10.73.0.1/24"), ("enclave", "addresses")),
        (
            TWO + 'addresses = ["10.73.0.2/24"]\nrelay_addresses = ["10.73.0.1/24"]\n',
            ("enclaves", 1, "addresses"),
        ),
    ],
)
def test_a_prefix_that_this_machine_uses_is_told_of(text: str, key: KeyPath) -> None:
    class Kernel:
        async def networks(self, *, besides: tuple[str, ...]) -> list[tuple[str, IPv4Interface]]:
            links = {"eth0": "10.73.0.9/16", "eth1": "10.72.0.9/16", "wg0": "10.73.0.1/24"}
            return [(name, IPv4Interface(address)) for name, address in links.items() if name not in besides]

    config = settings.parse(RelayConfig, text + GOOD)
    (told,) = asyncio.run(rehearse_here(config, cast("Any", Kernel())))
    assert told.key == key
    assert told.what == "on this machine the tunnel cannot use 10.73.0.0/24"
    assert told.why == "it overlaps 10.73.0.0/16, the network of eth0"
