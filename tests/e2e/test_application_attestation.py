"""An enclave's clients verify their server: a published HTTPS application, or an impostor."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from lab.backend import Completed
from lab.guest.command import alone
from lab.ladder import Ladder
from lab.nsm.client import UnixSecureModule
from lab.topology import Node
from lab.watch.meddler import Meddler, SwappedResponse
from tests.e2e.stranger import provisioning_document
from tests.unit.tls_enclave import Identity, ok, serving
from wgvsock.addresses import PROVISIONING_PORT
from wgvsock.attestation.binding import encode_x25519_spki
from wgvsock.attestation.client import WELL_KNOWN, ClientBinding
from wgvsock.attestation.document import parse_document
from wgvsock.devices.nsm import NsmClient
from wgvsock.enclave.documents.maker import BURST, RATE

pytestmark = pytest.mark.lab

CERTIFICATE = "/run/wgvsock/tls.pem"
SOCKET = "/run/wgvsock/attestation.sock"
PROXY_CERTIFICATE = f"/tmp/wgvsock-proxy-{os.getpid()}.pem"  # noqa: S108 - of the machine that it runs in, a guest maybe
DOCUMENTS_PORT = 8444
PROXY_PORT = 8443
WGVSOCK = str(Path(sys.executable).with_name("wgvsock"))


@pytest.fixture(scope="module")
def attested(network: Ladder) -> Iterator[Ladder]:
    """An enclave whose application serves HTTPS and forwards documents, with both ports published."""
    network.clear()
    port = network.topology.application.http_port
    enclave = network.backend.enclave_config() | {
        "application": {"env": ["PYTHONUNBUFFERED=1"]},
        "attestation_endpoint": {
            "port": DOCUMENTS_PORT, "local": True, "socket": SOCKET, "tls_certificate": CERTIFICATE,
        },
    }  # fmt: skip
    relay = network.backend.relay_config()
    relay["nat"]["publish"].append({"protocol": "tcp", "port": DOCUMENTS_PORT, "enclave_port": DOCUMENTS_PORT})
    command = [sys.executable, "-m", "lab.programs.tls_application", "--port", str(port)]
    network.start_enclave(enclave, application=[*command, "--certificate", CERTIFICATE, "--agent", SOCKET])
    network.start_relay(relay)
    network.wait_ready()
    network.backend.deadline(20).poll(
        lambda: (
            network.try_probe(Node.EXTERNAL, "tcp", network.topology.pod4, str(port), "--timeout", "2")["ok"]
            or fetch(network, "--json").exit_code == 0
        ),
        "the application",
    )
    yield network
    network.clear()


def fetch(lab: Ladder, *options: str, url: str | None = None, pcr0: str | None = None) -> Completed:
    """An external client."""
    port = lab.topology.application.http_port
    command = [WGVSOCK, "attest", "fetch", url or f"https://{lab.topology.pod4}:{port}", "--pcrs", "-", *options]
    built = measurements(lab, **({"PCR0": pcr0} if pcr0 else {}))
    return lab.backend.run(Node.EXTERNAL, [*command, "--root-sha256", lab.backend.root_sha256], stdin=built)


def measurements(lab: Ladder, **other: str) -> bytes:
    """The output of ``nitro-cli build-enclave``."""
    measured = {name: lab.backend.enclave_measurements[name] for name in ("PCR0", "PCR1", "PCR2")}
    return json.dumps({"Measurements": {"HashAlgorithm": "Sha384 { ... }", **measured, **other}}).encode()


def verdict(done: Completed) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_published_application_is_accepted(attested: Ladder) -> None:
    done = fetch(attested, "--json")
    assert done.exit_code == 0, done.stderr
    found = verdict(done)
    assert found["ok"]
    assert found["module_id"] == attested.enclave_status()["attestation"]["module_id"]
    assert found["spki_sha256"]


def test_the_agents_own_port_names_the_certificate_as_well(attested: Ladder) -> None:
    done = fetch(attested, "--json", "--document", f"http://{attested.topology.pod4}:{DOCUMENTS_PORT}")
    assert done.exit_code == 0, done.stderr


def test_a_proxy_between_is_refused(attested: Ladder) -> None:
    upstream = f"{attested.topology.pod4}:{attested.topology.application.http_port}"
    command = [sys.executable, "-m", "lab.programs.tls_application", "--port", str(PROXY_PORT)]
    argv = [*command, "--certificate", PROXY_CERTIFICATE, "--upstream", upstream]
    proxy = attested.backend.spawn(Node.EXTERNAL, argv, name="proxy")
    try:
        proxy.wait_for_line("ready", attested.backend.deadline(20))
        done = fetch(attested, "--json", url=f"https://127.0.0.1:{PROXY_PORT}")
    finally:
        proxy.kill()
        attested.backend.run(Node.EXTERNAL, ["rm", "-f", PROXY_CERTIFICATE, PROXY_CERTIFICATE.replace(".pem", ".key")])
    assert done.exit_code == 5, done.stderr
    assert verdict(done)["check"] == "tls.certificate"


def test_another_image_is_refused(attested: Ladder) -> None:
    done = fetch(attested, "--json", pcr0="ab" * 48)
    assert (done.exit_code, verdict(done)["check"]) == (5, "pcr.set")


def fetch_from(lab: Ladder, url: str, *options: str) -> dict[str, Any]:
    """A client on this machine, the parent instance, and an impostor of the enclave there."""
    command = [WGVSOCK, "attest", "fetch", url, "--json", "--root-sha256", lab.backend.root_sha256, *options]
    built = measurements(lab)
    done = subprocess.run([*command, "--pcrs", "-"], input=built, capture_output=True, check=False, timeout=60)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 5), done.stderr
    return dict(found)


def test_a_replayed_document_is_refused(attested: Ladder, tmp_path: Path) -> None:
    url = f"http://{attested.topology.pod4}:{DOCUMENTS_PORT}{WELL_KNOWN}?nonce={'ab' * 32}"
    script = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=10).read().hex())"
    command = [sys.executable, "-I", "-c", script]
    recorded = bytes.fromhex(attested.backend.run(Node.EXTERNAL, command).check().stdout.decode())
    with serving(lambda _: ok(recorded), Identity(tmp_path, "player")) as url:
        assert fetch_from(attested, url)["check"] == "nonce.mismatch"


def test_another_enclave_of_the_same_image_is_refused(attested: Ladder, tmp_path: Path) -> None:
    """Its document is genuine and names its own certificate: only a client that names one enclave rejects it."""
    ours = attested.enclave_status()["attestation"]["module_id"]
    socket = attested.backend.directory / "nsm/twin.sock"
    attested.backend.nsm.create("twin", str(socket), measurements=attested.backend.nsm.describe().measurements)
    module, identity = UnixSecureModule(str(socket)), Identity(tmp_path, "twin")
    nsm, binding = NsmClient(module), ClientBinding(identity.spki, b"").encode()
    try:
        with serving(lambda nonce: ok(nsm.attest(nonce=nonce, user_data=binding)), identity) as url:
            accepted = fetch_from(attested, url)
            refused = fetch_from(attested, url, "--enclave-id", ours)
    finally:
        module.close()
    assert accepted["ok"]
    assert accepted["module_id"] != ours
    assert refused["check"] == "module_id.launched"
    assert fetch(attested, "--json", "--enclave-id", ours).exit_code == 0


OWN_BY_PYTHON = """
import http.client, socket, sys
class Agent(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
agent = Agent("agent")
agent.request("POST", "/document?" + sys.argv[2])
answer = agent.getresponse()
print(answer.status, answer.read().hex())
"""


def own_document(lab: Ladder, **fields: bytes) -> bytes:
    """What the application's own program gets from the agent."""
    query = "&".join(f"{name}={value.hex()}" for name, value in fields.items())
    command = [sys.executable, "-I", "-S", "-c", OWN_BY_PYTHON, SOCKET, query]
    status, document = lab.backend.run(Node.ENCLAVE, command).check().stdout.split()
    assert status == b"200"
    return bytes.fromhex(document.decode())


def test_the_application_gets_documents_of_its_own_from_a_shell_and_from_python(attested: Ladder) -> None:
    own = [WGVSOCK, "attest", "own", "--socket", SOCKET, "--nonce", "ab" * 20, "--user-data", "c0de"]
    by_shell = base64.b64decode(attested.backend.run(Node.ENCLAVE, own).check().stdout)
    by_python = own_document(attested, nonce=b"\xab" * 20, user_data=b"\xc0\xde")
    for document in (by_shell, by_python):
        found = parse_document(document)
        assert found.nonce == b"\xab" * 20
        assert found.user_data == b"wgvsock/own/1\0\xc0\xde"
    assert by_shell != by_python


def test_no_document_of_the_applications_passes_for_provisioning(attested: Ladder) -> None:
    """A compromised application, and a parent instance that colludes with it.

    The party in the middle agrees on keys with each side, so it knows nonce and binding, and has the application
    request a document with exactly these.
    """
    backend, listener = attested.backend, attested.backend.directory / "accomplice"
    asked: list[bytes] = []

    def attest(request: bytes) -> bytes:
        fields = cbor2.loads(request)["Attestation"]
        asked.append(fields["user_data"])
        return cbor2.dumps({"Attestation": {"document": own_document(attested, **fields)}})

    def attempts(kind: str) -> int:
        return int(attested.enclave_status()["provisioning"]["attempts"][kind])

    attackers_key = encode_x25519_spki(b"\x09" + bytes(31))
    meddle = SwappedResponse(attest, attackers_key, os.urandom(32))
    with Meddler(listener, lambda: backend.dial_enclave(PROVISIONING_PORT), meddle=meddle):
        backend.divert(PROVISIONING_PORT, listener)
        try:
            refused = attempts("rejected")
            attested.attest_again()
            backend.deadline(20).poll(lambda: attempts("rejected") > refused, "the Relay to refuse it")
        finally:
            backend.divert(PROVISIONING_PORT, None)
    assert asked[0].startswith(b"wgvsock/prov/1\0\0")  # what provisioning would have accepted, behind another tag
    assert "user_data" in attested.enclave_status()["provisioning"]["error"]["what"]
    attest_again(attested, 20)  # an attempt under way may still go to him


def attest_again(lab: Ladder, seconds: float = 5.0) -> None:
    """By default within an exchange's own time limit."""
    known = lab.enclave_status()["provisioning"]["attempts"]["ok"]
    lab.attest_again()
    lab.backend.deadline(seconds).poll(
        lambda: lab.enclave_status()["provisioning"]["attempts"]["ok"] > known, "an attestation"
    )


def test_two_hundred_requests_a_second_do_not_delay_provisioning(attested: Ladder) -> None:
    before = attested.enclave_status()["provisioning"]["attempts"]
    url = f"http://{attested.topology.pod4}:{DOCUMENTS_PORT}{WELL_KNOWN}?nonce={'ab' * 32}"
    command = [*alone("crowd"), url, "--rate", "200", "--seconds", "5"]
    crowd = attested.backend.spawn(Node.EXTERNAL, command, name="crowd")
    try:
        for _ in range(3):
            attest_again(attested)
        assert crowd.wait(attested.backend.deadline(60)) == 0
        told = json.loads(crowd.output().splitlines()[-1])
    finally:
        crowd.kill()
    statuses = told["statuses"]
    assert set(statuses) <= {"200", "429", "0"}, told
    # Who has not asked yet makes room for the next one. Emulated clients all connect faster than they ask, others where
    # one waits for a processor.
    assert attested.backend.scale > 3 or statuses.get("0", 0) <= told["asked"] / 20, told
    assert statuses["429"] > 0, told
    assert statuses["200"] < told["asked"] / 2, told
    assert 0 < statuses["200"] <= BURST + RATE * told["seconds"] + 1  # all that the module was asked for
    after = attested.enclave_status()["provisioning"]["attempts"]
    assert after["failed"] == before["failed"]


def test_a_provisioning_document_is_refused(own_lab: Ladder, tmp_path: Path) -> None:
    """A parent instance uses a client's nonce in its own exchange.

    The enclave makes a document that answers it, of the right image and the right enclave, but for another use.
    """
    own_lab.start_enclave()
    made: list[bytes] = []

    def answer(nonce: bytes) -> bytes:
        made.append(provisioning_document(own_lab, nonce))
        return ok(made[-1])

    own_lab.backend.deadline(20).poll(lambda: own_lab.backend.status(Node.ENCLAVE), "the agent")
    with serving(answer, Identity(tmp_path, "parent")) as url:
        found = fetch_from(own_lab, url, "--timeout", "30")
    assert parse_document(made[0]).user_data.startswith(b"wgvsock/prov/1\0\0")  # type: ignore[union-attr]
    assert found["check"] == "user_data.domain"
