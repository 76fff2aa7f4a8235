"""Every way in which an enclave must not become a peer.

After each: no peer and no rule at the Relay, a clear error on both sides, and a correct attempt afterwards works.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha384
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lab.ladder import Ladder
from lab.meddler import Meddle, Meddler, frame
from lab.nsm.client import UnixSecureModule
from lab.tap import Kind
from lab.topology import Node
from wgvsock.addresses import PROVISIONING_PORT
from wgvsock.attestation.policy import Expectations, PcrSet, Policy
from wgvsock.attestation.verifier import Verifier
from wgvsock.provisioning import ProvisioningFailed, RelayProvisioning, TunnelConfig
from wgvsock.provisioning.errors import (
    AlreadyProvisionedError,
    AttestationRejectedError,
    AuthFailedError,
    BadCborError,
    BadFieldError,
    BadFrameError,
    BindingMismatchError,
    PolicyError,
    SecureModuleError,
    UnsupportedVersionError,
)

pytestmark = pytest.mark.lab

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """One way, and what both logs have to say about it."""

    name: str
    check: str
    knobs: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Config], None] = lambda config: None
    enclave_says: str = AttestationRejectedError.summary


def pin_another_root(config: Config) -> None:
    config["attestation"]["root_sha256"] = ["ab" * 32]


def expect_another_instance(config: Config) -> None:
    config["attestation"]["module_id"] = "i-0123456789abcdef0-enc0123456789abcdef"


def allow_another_image(config: Config) -> None:
    config["attestation"]["pcr_sets"][0]["pcr1"] = "cd" * 48


ANOTHER_KEY = bytes.fromhex("302a300506032b656e032100") + b"\x09" + bytes(31)  # X25519 SubjectPublicKeyInfo, RFC 8410

WRONG_DOCUMENTS = [
    Refusal("the root is not the pinned one", "chain.root", {"wrong_root": True}),
    Refusal("debug mode", "pcr.debug", {"debug": True}),
    Refusal("another image", "pcr.set", {"pcrs": {0: b"\x77" * 48}}, enclave_says=PolicyError.summary),
    Refusal("stale", "freshness.stale", {"clock_offset": -600}),
    Refusal("from the future", "freshness.future", {"clock_offset": 600}),
    Refusal("another nonce", "nonce.mismatch", {"payload": {"nonce": b"\x01" * 32}}),
    Refusal("no nonce", "nonce.missing", {"without": ("nonce",)}),
    Refusal("a leaf for another enclave", "module_id", {"leaf_module_id": "i-0aaaaaaaaaaaaaaaa-enc0aaaaaaaaaaaaaaa"}),
    Refusal(
        "no X25519 key",
        "public_key",
        {"payload": {"public_key": b"\x01" * 44}},
        enclave_says=BindingMismatchError.summary,
    ),
    Refusal(
        "a key that the PCR does not commit to",
        "pcr.key",
        {"payload": {"public_key": ANOTHER_KEY}},
        enclave_says=BindingMismatchError.summary,
    ),
    Refusal(
        "another exchange's binding",
        "user_data",
        {"payload": {"user_data": b"\x02" * 64}},
        enclave_says=BindingMismatchError.summary,
    ),
    Refusal("a broken signature", "cose.sig", {"corrupt_signature": True}),
    Refusal("a tail", "cbor", {"trailing_bytes": 3}),
    Refusal("a key twice", "cbor", {"duplicate_key": True}),
]

WRONG_POLICIES = [
    Refusal("another root pinned", "chain.root", change=pin_another_root),
    Refusal("one PCR of the set differs", "pcr.set", change=allow_another_image, enclave_says=PolicyError.summary),
    Refusal("another instance", "module_id.launched", change=expect_another_instance, enclave_says=PolicyError.summary),
]


def nothing_came_of_it(lab: Ladder) -> None:
    """No peer, no rule, not ready; and the enclave did not keep its configuration."""
    status = lab.backend.status(Node.POD)
    assert status is not None
    assert not status["ready"]
    assert status["wireguard"]["peers"] == []
    rules = lab.nat_rules()
    assert "masquerade" not in rules
    assert "dnat" not in rules


def logged(lab: Ladder, relay: str, enclave: str | None) -> None:
    assert lab.relay is not None
    assert lab.enclave is not None
    lab.relay.wait_for_line(relay, lab.backend.deadline(10))
    if enclave is not None:
        lab.enclave.wait_for_line(enclave, lab.backend.deadline(10))


def name_of(refusal: Refusal) -> str:
    return refusal.name.replace(" ", "-")


@pytest.mark.parametrize("refusal", WRONG_DOCUMENTS, ids=name_of)
def test_wrong_document(own_lab: Ladder, refusal: Refusal) -> None:
    own_lab.backend.nsm.set_faults(**refusal.knobs)
    own_lab.start_enclave()
    own_lab.start_relay()
    logged(own_lab, f"check {refusal.check}:", refusal.enclave_says)
    nothing_came_of_it(own_lab)
    assert own_lab.state_of_enclave() == "unprovisioned"

    own_lab.backend.nsm.reset()
    own_lab.attest_again()
    own_lab.wait_ready()
    own_lab.probe(Node.ENCLAVE, "udp", own_lab.topology.external4, "7")


@pytest.mark.parametrize(
    "knobs", [{"debug": True}, {"pcrs": {0: b"\x77" * 48}}, {"wrong_root": True}], ids=lambda knobs: next(iter(knobs))
)
def test_wrong_document_later_ends_what_was_right_before(own_lab: Ladder, knobs: dict[str, Any]) -> None:
    own_lab.start_enclave()
    own_lab.start_relay()
    own_lab.wait_ready()
    own_lab.probe(Node.ENCLAVE, "udp", own_lab.topology.external4, "7")
    own_lab.backend.nsm.set_faults(**knobs)
    own_lab.attest_again()
    logged(own_lab, "the attestation document was rejected", None)
    nothing_came_of_it(own_lab)
    assert not own_lab.try_probe(Node.ENCLAVE, "udp", own_lab.topology.external4, "7", "--timeout", "0.3")["ok"]

    own_lab.backend.nsm.reset()
    own_lab.attest_again()
    own_lab.wait_ready()
    own_lab.probe(Node.ENCLAVE, "udp", own_lab.topology.external4, "7")


@pytest.mark.parametrize("refusal", WRONG_POLICIES, ids=name_of)
def test_enclave_that_the_policy_does_not_allow(own_lab: Ladder, refusal: Refusal) -> None:
    config = own_lab.backend.relay_config()
    refusal.change(config)
    own_lab.start_enclave()
    own_lab.start_relay(config)
    logged(own_lab, f"check {refusal.check}:", refusal.enclave_says)
    nothing_came_of_it(own_lab)

    own_lab.restart_relay()
    own_lab.wait_ready()
    own_lab.probe(Node.ENCLAVE, "udp", own_lab.topology.external4, "7")


@pytest.fixture
def meddled(own_lab: Ladder) -> Iterator[tuple[Ladder, Meddler, Config]]:
    """A laboratory whose provisioning goes through a man in the middle."""
    listen = own_lab.backend.directory / "relay-side/meddler"
    upstream = own_lab.backend.directory / f"enclave-side/{PROVISIONING_PORT}"
    config = own_lab.backend.relay_config()
    config["enclave"]["provisioning_address"] = f"unix:{listen}"
    with Meddler(listen, upstream) as meddler:
        yield own_lab, meddler, config
    listen.unlink()


def refuse_with(meddled: tuple[Ladder, Meddler, Config], meddle: Meddle, relay: str, enclave: str | None) -> None:
    lab, meddler, config = meddled
    honest, meddler.meddle = meddler.meddle, meddle
    lab.start_enclave()
    lab.start_relay(config)
    logged(lab, relay, enclave)
    nothing_came_of_it(lab)
    meddler.meddle = honest
    lab.attest_again()
    lab.wait_ready()
    lab.probe(Node.ENCLAVE, "udp", lab.topology.external4, "7")


def changed(payload: bytes, **fields: Any) -> list[bytes]:
    message = cbor2.loads(payload)
    message.update({int(key.removeprefix("k")): value for key, value in fields.items()})
    return [frame(cbor2.dumps(message))]


def test_relays_key_swapped_on_the_way(meddled: tuple[Ladder, Meddler, Config]) -> None:
    """The enclave would make the attacker its peer; the Relay's signature does not cover that request."""

    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return changed(payload, k4=os.urandom(32)) if name == "REQUEST" else [frame(payload)]

    refuse_with(meddled, meddle, AuthFailedError.summary, AuthFailedError.summary)


def test_relays_key_swapped_and_signed_again(meddled: tuple[Ladder, Meddler, Config]) -> None:
    """The attacker signs with a key of its own: the enclave agrees, and attests to another transcript."""
    hellos: list[bytes] = []

    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        if name == "HELLO":
            hellos.append(payload)
        if name != "REQUEST":
            return [frame(payload)]
        return [frame(signed_by_the_attacker(hellos[-1], payload))]

    refuse_with(meddled, meddle, "check user_data", BindingMismatchError.summary)


def signed_by_the_attacker(hello: bytes, request: bytes) -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(b"\x66" * 32)
    message = cbor2.loads(request)
    message[4] = os.urandom(32)
    message[9] = key.public_key().public_bytes_raw()
    unsigned = {number: value for number, value in message.items() if number != 8}
    digests = sha384(hello).digest() + sha384(cbor2.dumps(unsigned, canonical=True)).digest()
    message[8] = key.sign(b"wgvsock/prov/1\0\0" + b"relay" + digests)
    return cbor2.dumps(message, canonical=True)


def test_capabilities_downgraded_on_the_way(meddled: tuple[Ladder, Meddler, Config]) -> None:
    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return changed(payload, k5=["framing/native", "profile/plain"]) if name == "HELLO" else [frame(payload)]

    refuse_with(meddled, meddle, AuthFailedError.summary, AuthFailedError.summary)


def test_document_of_another_exchange_replayed(meddled: tuple[Ladder, Meddler, Config]) -> None:
    """A whole genuine RESPONSE, recorded from a good exchange, answers the next one."""
    lab, meddler, config = meddled
    lab.start_enclave()
    lab.start_relay(config)
    lab.wait_ready()
    recorded = next(payload for _, name, payload in meddler.seen if name == "RESPONSE")
    lab.clear()

    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return [frame(recorded if name == "RESPONSE" else payload)]

    refuse_with(meddled, meddle, "check nonce.mismatch", AttestationRejectedError.summary)


def test_other_codes_document(meddled: tuple[Ladder, Meddler, Config]) -> None:
    """The attacker runs an enclave of its own, genuine but with other code, and has it attest to this very exchange."""
    lab, _, _ = meddled
    path = lab.backend.directory / "nsm/attacker.sock"
    lab.backend.nsm.create("attacker", str(path), measurements={number: os.urandom(48) for number in range(3)})
    seen: dict[str, bytes] = {}

    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        seen[name] = payload
        if name != "RESPONSE":
            return [frame(payload)]
        module = UnixSecureModule(str(path))
        request = {
            "nonce": cbor2.loads(seen["REQUEST"])[3],
            "public_key": ANOTHER_KEY,
            "user_data": cbor2.loads(cbor2.loads(cbor2.loads(payload)[3])[2])["user_data"],
        }
        document = cbor2.loads(module.request(cbor2.dumps({"Attestation": request})))["Attestation"]["document"]
        module.close()
        return changed(payload, k3=document)

    refuse_with(meddled, meddle, "check pcr.set", PolicyError.summary)


@pytest.mark.parametrize(
    ("answer", "relay"),
    [
        (struct.pack(">I", 1 << 30), BadFrameError.summary),
        (struct.pack(">I", 16 * 1024 + 1), BadFrameError.summary),
        (frame(b"\xff" * 100), BadCborError.summary),
        (frame(cbor2.dumps({1: 1, 2: 2})), BadFieldError.summary),
        (frame(cbor2.dumps({1: 7, 2: 2, 3: b""})), UnsupportedVersionError.summary),
    ],
    ids=["huge", "one-byte-too-long", "garbage", "field-missing", "other-version"],
)
def test_bad_frame_to_the_relay(meddled: tuple[Ladder, Meddler, Config], answer: bytes, relay: str) -> None:
    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return [answer if name == "RESPONSE" else frame(payload)]

    refuse_with(meddled, meddle, relay, None)


def test_module_that_refuses(own_lab: Ladder) -> None:
    own_lab.backend.nsm.set_faults(error="InternalError")
    own_lab.start_enclave()
    own_lab.start_relay()
    logged(own_lab, SecureModuleError.summary, SecureModuleError.summary)
    nothing_came_of_it(own_lab)
    own_lab.backend.nsm.reset()
    own_lab.attest_again()
    own_lab.wait_ready()


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (struct.pack(">I", 0xFFFFFFFF), 1),
        (struct.pack(">I", 8 * 1024 + 1), 1),
        (frame(b""), 1),
        (frame(os.urandom(200)), 2),
        (frame(cbor2.dumps({1: 1, 2: 1})), 4),
        (frame(cbor2.dumps({1: 2, 2: 1})), 3),
    ],
    ids=["huge", "one-byte-too-long", "empty", "garbage", "fields-missing", "other-version"],
)
def test_bad_frame_to_the_enclave(own_lab: Ladder, attack: bytes, code: int) -> None:
    own_lab.start_enclave()
    with connect(own_lab) as sock, sock.makefile("rb") as stream:
        hello = receive(stream)
        assert hello[2] == 0
        sock.sendall(attack)
        error = receive(stream)
        assert (error[2], error[3]) == (255, code)
        assert stream.read() == b""  # and the connection is over
    assert own_lab.state_of_enclave() == "unprovisioned"
    own_lab.start_relay()
    own_lab.wait_ready()


def connect(lab: Ladder) -> socket.socket:
    path = str(lab.backend.directory / f"enclave-side/{PROVISIONING_PORT}")

    def attempt() -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(10)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            return None
        return sock

    return lab.backend.deadline(10).poll(attempt, "the Enclave to listen")


def receive(stream: Any) -> dict[int, Any]:
    (length,) = struct.unpack(">I", stream.read(4))
    message: dict[int, Any] = cbor2.loads(stream.read(length))
    return message


def test_somebody_else_cannot_take_over(own_lab: Ladder) -> None:
    """The enclave is ACTIVE: a stranger who speaks the protocol perfectly, but is not its relay, is turned away."""
    own_lab.start_enclave()
    own_lab.start_relay()
    own_lab.wait_ready()
    own_lab.wait_application()
    with connect(own_lab) as sock:
        failure = provision_as_a_stranger(own_lab, sock)
    assert isinstance(failure.error, AlreadyProvisionedError)
    own_lab.probe(Node.ENCLAVE, "udp", own_lab.topology.external4, "7")
    status = own_lab.backend.status(Node.POD)
    assert status is not None
    assert status["ready"]


def provision_as_a_stranger(lab: Ladder, sock: socket.socket) -> ProvisioningFailed:
    pcrs = {number: bytes.fromhex(lab.backend.enclave_measurements[f"PCR{number}"]) for number in (0, 1, 2)}
    root = bytes.fromhex(lab.backend.root_sha256)
    topology = lab.topology
    stranger = RelayProvisioning(
        config=TunnelConfig(
            addresses=(ip_interface(f"{topology.enclave4}/24"),),
            gateways=(ip_address(topology.relay4),),
            mtu=1500,
            allowed_ips=(ip_network("0.0.0.0/0"),),
        ),
        relay_public_key=X25519PrivateKey.from_private_bytes(os.urandom(32)).public_key().public_bytes_raw(),
        verifier=Verifier(Policy(pcr_sets=(PcrSet(pcrs),), accepted_roots=(root,))),
        expectations=Expectations(user_data=b""),
        epoch_ms=int(time.time() * 1000) + 60_000,
        random=os.urandom,
        utc_now=lambda: datetime.now(UTC),
        now=time.monotonic(),
        signing_seed=os.urandom(32),
    )
    while (event := stranger.next_event()) is None:
        sock.sendall(stranger.data_to_send())
        if data := sock.recv(65536):
            stranger.receive_data(data, time.monotonic())
        else:
            stranger.receive_eof()
    assert isinstance(event, ProvisioningFailed)
    return event
