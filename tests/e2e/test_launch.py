"""The Relay launches its enclave through nitro-cli, whose stand-in boots a guest with the image that was built.

The Relay runs in the pod's namespace of this machine, the enclave is what ``nitro-cli build-enclave`` made: its init
starts /dev/nsm and the production ``wgvsock enclave run``, and the Relay accepts the PCRs that the build printed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.backend import Process
from lab.eif.build import boot_services
from lab.ladder import Ladder
from lab.netns.backend import LAB, NetnsBackend
from lab.nitro.enclaves import Limits, Parent
from lab.qemu.backends import GuestBackend, in_guest
from lab.qemu.cpio import File
from lab.raising import why_not_here
from wgvsock.errors import AttestationError

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NITRO_CLI = LAB / "bin/nitro-cli"
EMULATION = 12.0
"""How much longer things take in an emulated guest; only a deadline hangs on it."""


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
        config["enclave"] = {"address": f"hybrid:{self._folder}/state/app/u:51820"}
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
    """The image, with the application's server; returns its measurements."""
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
