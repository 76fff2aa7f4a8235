"""Every way in which an enclave must not become a peer.

After each: no peer and no rule at the Relay, and a clear error on both sides. What is left is the same after all of
them, an enclave that is nobody's and a Relay that tries again; that a correct attempt then works is shown once a kind.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import sha384
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, TypeVar

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lab.backend import Process
from lab.ladder import Ladder
from lab.meddler import PATIENCE, Meddle, Meddler, frame
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
    RateLimitedError,
    SecureModuleError,
    UnsupportedVersionError,
    WireCode,
)

pytestmark = pytest.mark.lab

Config = dict[str, Any]
T = TypeVar("T")
MESSAGE_HELLO, MESSAGE_ERROR = 0, 255
ASKING_PERIOD = 1.5
"""Seconds between two demands: the Enclave takes one connection a second."""


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


class Attempt:
    """What both services say from now on, or from their start on, of an attempt to make the enclave a peer."""

    def __init__(self, lab: Ladder, *, since_start: bool = False) -> None:
        self._lab = lab
        self._before = {process.name: 0 if since_start else len(process.output()) for process in self._processes()}

    def _processes(self) -> list[Process]:
        assert self._lab.relay is not None
        assert self._lab.enclave is not None
        return [self._lab.relay, self._lab.enclave]

    def is_refused(self, relay: str, enclave: str | None) -> None:
        """For these reasons, and nothing came of it: no peer, no rule, not ready."""
        for process, reason in zip(self._processes(), (relay, enclave), strict=True):
            if reason is not None:
                say = partial(self._said, process, reason)
                ask_for_attestation_until(self._lab, say, f"{process.name} to say {reason!r}")
        status = self._lab.relay_status()
        assert not status["ready"]
        assert status["wireguard"]["peers"] == []
        rules = self._lab.nat_rules()
        assert "masquerade" not in rules
        assert "dnat" not in rules

    def _said(self, process: Process, reason: str) -> bool:
        assert process.poll() is None, process.output()
        return reason in process.output()[self._before[process.name] :]


def is_unprovisioned(lab: Ladder) -> bool:
    """Whether an Enclave runs that is nobody's peer."""
    return (lab.backend.status(Node.ENCLAVE) or {}).get("state") == "unprovisioned"


def ask_for_attestation_until(lab: Ladder, look: Callable[[], T | None], what: str) -> T:
    """Without waiting for the Relay's back-off."""
    asked = -math.inf

    def ask_and_look() -> T | None:
        nonlocal asked
        if seen := look():
            return seen
        if time.monotonic() - asked > ASKING_PERIOD:
            lab.attest_again()
            asked = time.monotonic()
        return None

    return lab.backend.deadline(20).poll(ask_and_look, what)


def succeeds(lab: Ladder) -> None:
    """A correct attempt does."""
    ask_for_attestation_until(lab, lab.look_ready, "the Relay to be ready")
    lab.probe(Node.ENCLAVE, "udp", lab.topology.external4, "7")


def answer(lab: Ladder, *nodes: Node) -> None:
    """Wait until the services in these nodes do."""
    for node in nodes:
        lab.backend.deadline(20).poll(partial(lab.backend.status, node), f"the service in {node} to answer")


@pytest.fixture
def nobodys(network: Ladder) -> Iterator[Ladder]:
    """Both services run, and the enclave is nobody's peer: whatever it attests to has a broken signature."""
    network.backend.nsm.set_faults(corrupt_signature=True)
    if not (network.runs() and is_unprovisioned(network)):
        network.clear()
        network.backend.nsm.set_faults(corrupt_signature=True)
        network.start_enclave()
        network.start_relay()
        answer(network, Node.POD, Node.ENCLAVE)
    yield network
    network.backend.nsm.set_faults(corrupt_signature=True)


def name_of(refusal: Refusal) -> str:
    return refusal.name.replace(" ", "-")


@pytest.mark.parametrize("refusal", WRONG_DOCUMENTS, ids=name_of)
def test_wrong_document(nobodys: Ladder, refusal: Refusal) -> None:
    attempt = Attempt(nobodys)
    nobodys.backend.nsm.set_faults(**refusal.knobs)
    attempt.is_refused(f"check {refusal.check}:", refusal.enclave_says)
    nobodys.backend.deadline(10).poll(lambda: is_unprovisioned(nobodys), "the Enclave to forget the attempt")


def test_a_right_document_after_wrong_ones(nobodys: Ladder) -> None:
    nobodys.backend.nsm.reset()
    succeeds(nobodys)


@pytest.mark.parametrize(
    "knobs", [{"debug": True}, {"pcrs": {0: b"\x77" * 48}}, {"wrong_root": True}], ids=lambda knobs: next(iter(knobs))
)
def test_wrong_document_later_ends_what_was_right_before(own_tunnel: Ladder, knobs: dict[str, Any]) -> None:
    patience = own_tunnel.patience()
    attempt = Attempt(own_tunnel)
    own_tunnel.backend.nsm.set_faults(**knobs)
    attempt.is_refused("the attestation document was rejected", None)
    assert own_tunnel.has_no_answer(Node.ENCLAVE, "udp", own_tunnel.topology.external4, "7", patience=patience)

    own_tunnel.backend.nsm.reset()
    succeeds(own_tunnel)


@pytest.fixture
def own_tunnel(network: Ladder) -> Ladder:
    """A tunnel that the test may break."""
    network.raise_tunnel()
    return network


@pytest.fixture
def unclaimed(network: Ladder) -> Ladder:
    """An enclave that waits for a Relay, and no Relay."""
    if network.relay is not None and is_unprovisioned(network):
        network.stop_relay()
    if network.relay is not None or not is_unprovisioned(network):
        network.clear()
        network.start_enclave()
        answer(network, Node.ENCLAVE)
    network.backend.nsm.reset()
    return network


@pytest.mark.parametrize("refusal", WRONG_POLICIES, ids=name_of)
def test_enclave_that_the_policy_does_not_allow(unclaimed: Ladder, refusal: Refusal) -> None:
    config = unclaimed.backend.relay_config()
    refusal.change(config)
    unclaimed.start_relay(config)
    answer(unclaimed, Node.POD)
    Attempt(unclaimed, since_start=True).is_refused(f"check {refusal.check}:", refusal.enclave_says)


def test_a_policy_that_allows_it_after_those_that_did_not(unclaimed: Ladder) -> None:
    unclaimed.start_relay()
    unclaimed.wait_ready()
    unclaimed.probe(Node.ENCLAVE, "udp", unclaimed.topology.external4, "7")


@pytest.fixture
def meddled(nobodys: Ladder) -> Iterator[tuple[Ladder, Meddler]]:
    """The same with a man in the middle of the provisioning port, and an enclave that could attest."""
    backend = nobodys.backend
    listener = backend.directory / "meddler"
    patience = backend.deadline(PATIENCE).seconds
    with Meddler(listener, lambda: backend.dial_enclave(PROVISIONING_PORT), patience=patience) as meddler:
        backend.divert(PROVISIONING_PORT, listener)
        backend.tap.drop()  # an exchange that is under way past him
        yield nobodys, meddler
        backend.nsm.set_faults(corrupt_signature=True)
        backend.divert(PROVISIONING_PORT, None)
        backend.tap.drop()
    listener.unlink()


def refuse_with(meddled: tuple[Ladder, Meddler], meddle: Meddle, relay: str, enclave: str | None) -> None:
    lab, meddler = meddled
    meddler.meddle = meddle
    lab.backend.nsm.reset()
    attempt = Attempt(lab)
    attempt.is_refused(relay, enclave)


def changed(payload: bytes, **fields: Any) -> list[bytes]:
    message = cbor2.loads(payload)
    message.update({int(key.removeprefix("k")): value for key, value in fields.items()})
    return [frame(cbor2.dumps(message))]


def test_relays_key_swapped_on_the_way(meddled: tuple[Ladder, Meddler]) -> None:
    """The enclave would make the attacker its peer; the Relay's signature does not cover that request."""

    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return changed(payload, k4=os.urandom(32)) if name == "REQUEST" else [frame(payload)]

    refuse_with(meddled, meddle, AuthFailedError.summary, AuthFailedError.summary)


def test_relays_key_swapped_and_signed_again(meddled: tuple[Ladder, Meddler]) -> None:
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


def test_capabilities_downgraded_on_the_way(meddled: tuple[Ladder, Meddler]) -> None:
    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return changed(payload, k5=["framing/native", "profile/plain"]) if name == "HELLO" else [frame(payload)]

    refuse_with(meddled, meddle, AuthFailedError.summary, AuthFailedError.summary)


def test_an_honest_man_in_the_middle_sees_a_provisioning_succeed(meddled: tuple[Ladder, Meddler]) -> None:
    lab, meddler = meddled
    lab.backend.nsm.reset()
    succeeds(lab)
    assert "HELLO REQUEST RESPONSE RESULT" in " ".join(name for _, name, _ in meddler.seen)


def test_document_of_another_exchange_replayed(meddled: tuple[Ladder, Meddler]) -> None:
    """A whole genuine RESPONSE, recorded from a good exchange, answers the next one."""
    lab, meddler = meddled
    lab.backend.nsm.reset()
    succeeds(lab)
    recorded = next(payload for _, name, payload in reversed(meddler.seen) if name == "RESPONSE")

    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return [frame(recorded if name == "RESPONSE" else payload)]

    refuse_with(meddled, meddle, "check nonce.mismatch", AttestationRejectedError.summary)


def test_other_codes_document(meddled: tuple[Ladder, Meddler]) -> None:
    """The attacker runs an enclave of its own, genuine but with other code, and has it attest to this very exchange."""
    lab, _ = meddled
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
def test_bad_frame_to_the_relay(meddled: tuple[Ladder, Meddler], answer: bytes, relay: str) -> None:
    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return [answer if name == "RESPONSE" else frame(payload)]

    refuse_with(meddled, meddle, relay, None)


def test_module_that_refuses(own_lab: Ladder) -> None:
    own_lab.backend.nsm.set_faults(error="InternalError")
    own_lab.start_enclave()
    own_lab.start_relay()
    answer(own_lab, Node.POD)
    Attempt(own_lab, since_start=True).is_refused(SecureModuleError.summary, SecureModuleError.summary)
    own_lab.backend.nsm.reset()
    succeeds(own_lab)


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
def test_bad_frame_to_the_enclave(unclaimed: Ladder, attack: bytes, code: int) -> None:
    with connect(unclaimed) as sock:
        sock.sendall(attack)
        error = receive(sock)
        assert (error[2], error[3]) == (MESSAGE_ERROR, code)
        assert sock.recv(1) == b""  # and the connection is over
    assert is_unprovisioned(unclaimed)


def connect(lab: Ladder) -> socket.socket:
    """A connection to the Enclave's provisioning port that has been greeted; it takes one a second."""

    def attempt() -> socket.socket | None:
        sock = lab.backend.dial_enclave(PROVISIONING_PORT)
        greeting = receive(sock)
        if greeting[2] == MESSAGE_HELLO:
            return sock
        sock.close()
        assert (greeting[2], greeting[3]) == (MESSAGE_ERROR, WireCode.RATE_LIMITED)
        return None

    return lab.backend.deadline(10).poll(attempt, "the Enclave to greet")


def test_a_relay_after_bad_frames(unclaimed: Ladder) -> None:
    unclaimed.start_relay()
    unclaimed.wait_ready()


def receive(sock: socket.socket) -> dict[int, Any]:
    """One message."""
    (length,) = struct.unpack(">I", receive_exactly(sock, 4))
    message: dict[int, Any] = cbor2.loads(receive_exactly(sock, length))
    return message


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the Enclave closed the connection"
        data += piece
    return data


def test_somebody_else_cannot_take_over(own_tunnel: Ladder) -> None:
    """The enclave is ACTIVE: a stranger who speaks the protocol perfectly, but is not its relay, is turned away."""

    def attempt() -> ProvisioningFailed | None:
        try:
            with own_tunnel.backend.dial_enclave(PROVISIONING_PORT) as sock:
                failure = provision_as_a_stranger(own_tunnel, sock)
        except ConnectionError:  # it takes one connection a second, and hung up while we spoke
            return None
        return None if isinstance(failure.error, RateLimitedError) else failure

    failure = own_tunnel.backend.deadline(10).poll(attempt, "the Enclave to listen to the stranger")
    assert isinstance(failure.error, AlreadyProvisionedError)
    own_tunnel.probe(Node.ENCLAVE, "udp", own_tunnel.topology.external4, "7")
    assert own_tunnel.relay_status()["ready"]


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
