"""A Relay attests its Enclave again while others crowd the provisioning port.

The figures are printed (``pytest -rP``). The tests assert that it succeeds long before trust ends, and that the Enclave
does not grow.
"""

from __future__ import annotations

import base64
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.ladder import Ladder
from lab.process import LocalProcess
from lab.topology import Node
from wgvsock.addresses import PROVISIONING_PORT
from wgvsock.provisioning import MAX_WAITING, public_key_of

pytestmark = pytest.mark.lab

PIN_SEED = b"the pinned relay's signing seed."
ROUNDS = 5
WITHIN = 30.0
"""Seconds for one attestation, of the 300 for which the last one is trusted. About 0.1 s is usual."""

FEW = 40
"""Descriptors in addition to those of the port: links, timers, netlink, the security module."""

MIB = 1 << 20
EMULATED = 40
"""An emulated processor, of which the suite keeps several busy at once, can take a flood smaller by this factor."""


@pytest.fixture(scope="module")
def pinned(network: Ladder) -> Iterator[Ladder]:
    """A tunnel to an Enclave that is pinned to its Relay."""
    if network.backend.name not in {"netns", "pair"}:
        pytest.skip("the flooder runs on this machine, and reaches the Enclave from it on netns and pair")
    network.clear()
    backend = network.backend
    key = f"{backend.relay_config()['runtime_directory']}/pinned.key"
    text = base64.b64encode(PIN_SEED).decode()
    backend.run(Node.POD, ["sh", "-c", f"umask 077; mkdir -p $(dirname {key}); echo {text} > {key}"]).check()
    relay_config, enclave_config = backend.relay_config(), backend.enclave_config()
    relay_config["provisioning"] = relay_config.get("provisioning", {}) | {"signing_key_file": key}
    enclave_config["pin_public_key"] = base64.b64encode(public_key_of(PIN_SEED)).decode()
    network.start_enclave(enclave_config)
    network.start_relay(relay_config)
    network.wait_ready()
    network.wait_application()
    yield network
    network.clear()


class Usage:
    """The resources of the Enclave's process, read in its machine."""

    def __init__(self, lab: Ladder) -> None:
        assert lab.enclave is not None
        script = "cd /proc/$0 && ls fd | wc -l && grep VmRSS status && cut -d' ' -f14,15 stat"
        output = lab.backend.run(Node.ENCLAVE, ["sh", "-c", script, str(lab.enclave.pid)]).check().stdout.decode()
        words = output.split()
        self.when = time.monotonic()
        self.descriptors = int(words[0])
        self.memory = int(words[2]) * 1024
        self.processor = (int(words[4]) + int(words[5])) / 100  # seconds; USER_HZ is 100 on every Linux of ours


@contextmanager
def flooder(lab: Ladder, kind: str, rate: int) -> Iterator[dict[str, Any]]:
    """Crowd the port. Afterwards the dictionary holds the outcomes of the attempts."""
    address = lab.backend.enclave_address(PROVISIONING_PORT)  # type: ignore[attr-defined] # netns and pair have it
    signer = public_key_of(PIN_SEED).hex()
    argv = [sys.executable, "-m", "lab.programs.flooder", kind, "--rate", str(rate), "--signer", signer, str(address)]
    process = LocalProcess.start(f"flooder-{kind}", argv, log=lab.backend.directory / f"logs/flooder-{kind}.log")
    report: dict[str, Any] = {}
    try:
        process.wait_for_line("running", lab.backend.deadline(20))
        yield report
        process.signal(signal.SIGTERM)
        process.wait(lab.backend.deadline(20))
        report |= json.loads(process.output().splitlines()[-1])
    finally:
        process.kill()


def attest_again(lab: Ladder) -> float:
    """Request an attestation after a second of the flood, and return how many seconds it took."""
    time.sleep(1.0)

    def succeeded() -> int:
        return int(lab.relay_status()["provisioning"]["attempts"]["ok"])

    before, began = succeeded(), time.monotonic()
    lab.attest_again()
    lab.backend.deadline(WITHIN).poll(lambda: succeeded() > before, "the Enclave to be attested again")
    return time.monotonic() - began


@pytest.mark.parametrize(("kind", "rate"), [("connect", 1000), ("hold", 13), ("forge", 1000)])
def test_a_pinned_relay_attests_again_under_a_flood(pinned: Ladder, kind: str, rate: int) -> None:
    if pinned.backend.name != "netns":
        if kind == "forge":
            pytest.skip("an emulated processor opens and checks only a few forged requests a second")
        rate = rate if kind == "hold" else rate // EMULATED
    before = Usage(pinned)
    with flooder(pinned, kind, rate) as attacker:
        times = [attest_again(pinned) for _ in range(ROUNDS)]
        during = Usage(pinned)
        pinned.wait_ready()
        pinned.probe(Node.ENCLAVE, "udp", pinned.topology.external4, "7")
    share = (during.processor - before.processor) / (during.when - before.when)
    print(  # noqa: T201 - the figures are what the test is run for
        f"{kind}: {attacker['connected'] / attacker['seconds']:.0f} connections/s of "
        f"{attacker['attempts'] / attacker['seconds']:.0f} tried; attested again in "
        f"{', '.join(f'{seconds:.2f}' for seconds in times)} s; the Enclave: {share:.0%} of a processor, "
        f"{during.descriptors - before.descriptors:+} descriptors, {(during.memory - before.memory) / MIB:+.1f} MiB"
    )
    assert max(times) < WITHIN * pinned.backend.scale
    assert during.descriptors <= before.descriptors + MAX_WAITING + FEW
    assert during.memory <= before.memory + 32 * MIB
