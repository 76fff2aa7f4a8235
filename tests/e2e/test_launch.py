"""The Relay launches its enclave through nitro-cli, whose stand-in boots a guest with the built image.

The Relay runs in the pod's namespace of this machine. The enclave is the output of ``nitro-cli build-enclave``: its
init starts /dev/nsm and the production ``wgvsock enclave run``, and the Relay accepts the PCRs that the build printed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.backend import Process
from lab.cli.raising import why_not_here
from lab.image.cpio import File
from lab.image.enclave import boot_services
from lab.laboratory import LAB
from lab.ladder import Ladder
from lab.netns.backend import NetnsBackend
from lab.nitro.enclaves import Limits, Parent
from lab.nsm.client import UnixSecureModule
from lab.qemu.backends import GuestBackend
from lab.qemu.nodes import in_guest
from lab.watch.meddler import PATIENCE, Meddle, Meddler, SwappedResponse, untouched
from wgvsock.addresses import PROVISIONING_PORT, HybridVsockAddress, Port
from wgvsock.attestation.binding import encode_x25519_spki
from wgvsock.errors import AttestationError

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NITRO_CLI = LAB / "bin/nitro-cli"
EMULATION = 12.0
"""How much longer things take in an emulated guest. Only a deadline depends on it."""


def nitro_cli(*arguments: str) -> Any:
    done = subprocess.run([str(NITRO_CLI), *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


class Site:
    """The laboratory with a parent instance in it."""

    def __init__(
        self, backend: NetnsBackend, ladder: Ladder, parent: Parent, folder: Path, measured: dict[str, str]
    ) -> None:
        self.ladder = ladder
        self.backend = backend
        self.parent = parent
        self.measured = measured
        self._folder = folder

    def config(self, **launch: Any) -> dict[str, Any]:
        config = dict(self.backend.relay_config())
        address = f"hybrid:{self._folder}/state/app/u:51820"
        config["enclave"] = {"address": address, "addresses": config["enclave"]["addresses"]}
        config["launch"] = {
            "image": str(self._folder / "app.eif"),
            "memory_mib": 640,
            "cpu_count": 1,
            "name": "app",
            "nitro_cli": str(NITRO_CLI),
            **launch,
        }
        config["attestation"] = {
            "root_sha256": [self.parent.start_signer()],
            "pcr_sets": [{f"pcr{number}": self.measured[f"PCR{number}"] for number in (0, 1, 2)}],
        }
        config["provisioning"] = {"exchange_timeout": 10 * EMULATION, "handshake_timeout": 10 * EMULATION}
        return config

    def start(self, config: dict[str, Any] | None = None) -> Process:
        self.ladder.start_relay(config or self.config())
        assert self.ladder.relay is not None
        return self.ladder.relay

    def dial(self, port: Port) -> socket.socket:
        """Open a stream to a vsock port of the launched enclave."""
        return self.backend._dial(HybridVsockAddress(f"{self._folder}/state/app/u", port))

    def wait_ready(self) -> dict[str, Any]:
        return self.ladder.wait_ready(self.backend.deadline(20 * EMULATION))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if reason := why_not_here(GuestBackend):
        pytest.skip(f"enclaves cannot be launched here: {reason}")
    folder = tmp_path_factory.mktemp("n")
    backend = NetnsBackend(f"{os.getpid():x}l")
    ladder = Ladder(backend)
    parent = Parent(folder / "state", Limits(memory_mib=4096, cpu_count=4))
    previous = os.environ.get("NITRO_CLI_SOCKETS_PATH")
    os.environ["NITRO_CLI_SOCKETS_PATH"] = str(folder / "state")
    try:
        backend.up()
        measured = build(backend, folder)
        yield Site(backend, ladder, parent, folder, measured)
    finally:
        ladder.clear()
        backend.down()
        parent.close()
        os.environ.pop("NITRO_CLI_SOCKETS_PATH")
        if previous is not None:
            os.environ["NITRO_CLI_SOCKETS_PATH"] = previous
    assert backend.leftovers() == []


def build(backend: NetnsBackend, folder: Path) -> dict[str, str]:
    """Build the image with the application's server, and return its measurements."""
    application = in_guest(backend.server_argv(backend.topology.application))
    command = ["wgvsock", "enclave", "run", "-c", "/etc/wgvsock/enclave.toml", "--", *application]
    files = boot_services(command) | {"etc/wgvsock/enclave.toml": File(b"parent_cid = 2\n")}
    for name, file in files.items():
        assert isinstance(file, File)
        path = folder / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
    options = ["--docker-uri", "app:1", "--docker-dir", str(folder / "app"), "--output-file", str(folder / "app.eif")]
    measured: dict[str, str] = nitro_cli("build-enclave", *options)["Measurements"]
    assert nitro_cli("describe-eif", "--eif-path", str(folder / "app.eif"))["Measurements"] == measured
    return measured


def test_launched_attested_and_serving(site: Site) -> None:
    site.start()
    status = site.wait_ready()
    (described,) = nitro_cli("describe-enclaves")
    assert described["EnclaveName"] == "app"
    assert status["launched"]["enclave_id"] == described["EnclaveID"]
    assert status["launched"]["cid"] == described["EnclaveCID"]
    assert status["attestation"]["pcrs"]["PCR2"] == site.measured["PCR2"]
    site.ladder.wait_application(site.backend.deadline(10 * EMULATION))


def test_killed_and_started_again_the_relay_adopts_the_enclave(site: Site) -> None:
    (before,) = nitro_cli("describe-enclaves")
    assert site.ladder.relay is not None
    site.ladder.relay.kill()
    site.start()
    assert site.wait_ready()["launched"]["enclave_id"] == before["EnclaveID"]
    site.ladder.wait_application(site.backend.deadline(10 * EMULATION))


@pytest.fixture
def swapper(site: Site) -> Iterator[tuple[Meddler, Meddle]]:
    """A third party at the provisioning port that answers with genuine documents from another enclave."""
    listener, module = site.backend.directory / "swapper", str(site.backend.directory / "attacker.sock")
    site.parent.signer_control().create(
        "attacker", module, measurements={number: os.urandom(48) for number in range(3)}
    )

    def attest(request: bytes) -> bytes:
        secure_module = UnixSecureModule(module)
        try:
            return secure_module.request(request)
        finally:
            secure_module.close()

    patience = site.backend.deadline(PATIENCE * EMULATION).seconds
    with Meddler(listener, lambda: site.dial(PROVISIONING_PORT), patience=patience) as meddler:
        yield meddler, SwappedResponse(attest, encode_x25519_spki(b"\x09" + bytes(31)))


def test_a_swapped_response_ends_no_launched_enclave(site: Site, swapper: tuple[Meddler, Meddle]) -> None:
    """Neither before it is provisioned nor when it works. Afterwards the Relay continues with the same one."""
    meddler, swapped = swapper
    (before,) = nitro_cli("describe-enclaves")
    assert site.ladder.relay is not None
    site.ladder.relay.kill()
    meddler.meddle = swapped
    config = site.config()
    config["enclave"]["provisioning_address"] = f"unix:{site.backend.directory / 'swapper'}"
    relay = site.start(config)
    deadline = site.backend.deadline(10 * EMULATION)
    relay.wait_for_line("check module_id.launched", deadline)
    assert not site.ladder.relay_status()["ready"]

    meddler.meddle = untouched
    site.wait_ready()
    meddler.meddle = swapped
    site.ladder.attest_again()
    deadline.poll(
        lambda: "module_id.launched" in str(site.ladder.relay_status()["provisioning"]["error"]), "the next refusal"
    )
    assert site.ladder.relay_status()["ready"]
    assert relay.poll() is None
    assert nitro_cli("describe-enclaves") == [before]

    meddler.meddle = untouched
    deadline.poll(lambda: site.ladder.relay_status()["provisioning"]["attempts"]["ok"] == 2, "the next attestation")
    assert site.wait_ready()["launched"]["enclave_id"] == before["EnclaveID"]
    site.ladder.wait_application(site.backend.deadline(10 * EMULATION))
    relay.kill()
    site.start()
    site.wait_ready()


def test_an_enclave_that_dies_is_replaced_with_another_cid(site: Site) -> None:
    (before,) = nitro_cli("describe-enclaves")
    os.kill(before["ProcessID"], 9)
    deadline = site.backend.deadline(30 * EMULATION)
    deadline.poll(
        lambda: [one for one in nitro_cli("describe-enclaves") if one["EnclaveID"] != before["EnclaveID"]], "another"
    )
    status = site.wait_ready()
    (after,) = nitro_cli("describe-enclaves")
    assert after["EnclaveCID"] != before["EnclaveCID"]
    assert status["attestation"]["module_id"].startswith(after["EnclaveID"].partition("-enc")[0])


def test_stopped_the_relay_terminates_the_enclave(site: Site) -> None:
    site.ladder.stop()
    assert nitro_cli("describe-enclaves") == []


def test_an_image_that_the_policy_does_not_know_is_terminated_and_reported(site: Site) -> None:
    config = site.config()
    config["attestation"]["pcr_sets"][0]["pcr0"] = "01" * 48
    relay = site.start(config)
    assert relay.wait(site.backend.deadline(30 * EMULATION)) == AttestationError.exit_code
    assert "pcr" in relay.output().lower()
    assert nitro_cli("describe-enclaves") == []
