"""Every way in which an enclave must not become a peer.

After each there is no peer and no rule at the Relay, and a clear error on both sides. The remaining state is the same
after all of them: an enclave that is not a peer, and a Relay that retries. Once per kind, a test shows that a correct
attempt then works.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeVar

import cbor2
import pytest

from lab.backend import Process
from lab.ladder import Ladder
from lab.nsm.client import UnixSecureModule
from lab.topology import Node
from lab.watch.meddler import PATIENCE, Interceptor, Meddle, Meddler, SwappedResponse, frame, untouched
from lab.watch.tap import Kind
from tests.e2e.stranger import provision
from wgvsock.addresses import PROVISIONING_PORT
from wgvsock.devices.nsm import NsmClient
from wgvsock.provisioning.deadlines import DEFAULT_DEADLINES
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
    WireCode,
)
from wgvsock.testing.provisioning import RelayHalf

pytestmark = pytest.mark.lab

Config = dict[str, Any]
T = TypeVar("T")

CLOSED_WITHIN = 1.0
"""Seconds from "refused", when the peer is gone, to the matching rules: iptables takes several calls."""
MESSAGE_ERROR = 255
ASKING_PERIOD = 1.5
"""Seconds between two demands: an attempt in progress is not disturbed."""


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
    """What both services report, from now on or since their start, about an attempt to make the enclave a peer."""

    def __init__(self, lab: Ladder, *, since_start: bool = False) -> None:
        self._lab = lab
        self._before = {process.name: 0 if since_start else len(process.output()) for process in self._processes()}

    def _processes(self) -> list[Process]:
        assert self._lab.relay is not None
        assert self._lab.enclave is not None
        return [self._lab.relay, self._lab.enclave]

    def is_refused(self, relay: str, enclave: str | None) -> None:
        """For these reasons, and without effect: no peer, no rule, not ready."""
        self.fails(relay, enclave)
        status = self._lab.relay_status()
        assert not status["ready"]
        assert status["wireguard"]["peers"] == []
        self._lab.backend.deadline(CLOSED_WITHIN).poll(lambda: not self._lab.translates(), "forwarding to end")

    def fails(self, relay: str, enclave: str | None) -> None:
        """For these reasons."""
        for process, reason in zip(self._processes(), (relay, enclave), strict=True):
            if reason is not None:
                say = partial(self._said, process, reason)
                ask_for_attestation_until(self._lab, say, f"{process.name} to say {reason!r}")

    def _said(self, process: Process, reason: str) -> bool:
        assert process.poll() is None, process.output()
        return reason in process.output()[self._before[process.name] :]


def is_unprovisioned(lab: Ladder) -> bool:
    """Return whether an Enclave runs that is not a peer."""
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
    """A correct attempt succeeds."""
    ask_for_attestation_until(lab, lab.look_ready, "the Relay to be ready")
    lab.probe(Node.ENCLAVE, "udp", lab.topology.external4, "7")


def answer(lab: Ladder, *nodes: Node) -> None:
    """Wait until the services in these nodes do."""
    for node in nodes:
        lab.backend.deadline(20).poll(partial(lab.backend.status, node), f"the service in {node} to answer")


@pytest.fixture
def nobodys(network: Ladder) -> Iterator[Ladder]:
    """Both services run, and the enclave is not a peer, because its documents have a broken signature."""
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


@pytest.mark.parametrize(("closed_map", "head"), [(False, 0xBF), (True, 0xA9)], ids=["open", "closed"])
def test_a_right_document_with_its_payload_in_either_form(nobodys: Ladder, closed_map: bool, head: int) -> None:
    """AWS has written the payload's map open since 2025, and wrote it closed until then."""
    nobodys.backend.nsm.set_faults(closed_map=closed_map)
    assert payload_of_the_enclaves_module(nobodys)[0] == head
    succeeds(nobodys)


def payload_of_the_enclaves_module(lab: Ladder) -> bytes:
    """Documents from another boot of the same enclave's module. The settings are per enclave."""
    module = UnixSecureModule(lab.backend.nsm.describe().socket)
    payload = cbor2.loads(NsmClient(module).attest())[2]
    module.close()
    assert isinstance(payload, bytes)
    return payload


@pytest.mark.parametrize("knobs", [{"debug": True}, {"pcrs": {0: b"\x77" * 48}}], ids=lambda knobs: next(iter(knobs)))
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
        cut_exchanges(nobodys)  # one that is under way past him
        yield nobodys, meddler
        backend.nsm.set_faults(corrupt_signature=True)
        backend.divert(PROVISIONING_PORT, None)
        backend.tap.drop()
    listener.unlink()


def cut_exchanges(lab: Ladder) -> None:
    """Wait until the Enclave is unprovisioned: after a cut before the RESULT it keeps its settings for a while."""
    lab.backend.tap.drop()
    forgets = lab.backend.deadline(DEFAULT_DEADLINES.rollback + 10)
    forgets.poll(lambda: is_unprovisioned(lab), "the Enclave to forget the attempt")


def refuse_with(meddled: tuple[Ladder, Meddler], meddle: Meddle, relay: str, enclave: str | None) -> None:
    lab, meddler = meddled
    meddler.meddle = meddle
    cut_exchanges(lab)  # one that he let pass until now
    lab.backend.nsm.reset()
    attempt = Attempt(lab)
    attempt.is_refused(relay, enclave)


def changed(payload: bytes, **fields: Any) -> bytes:
    message = cbor2.loads(payload)
    message.update({int(key.removeprefix("k")): value for key, value in fields.items()})
    return cbor2.dumps(message, canonical=True)


def change_of(name: str, **fields: Any) -> Callable[[str, bytes], bytes]:
    """What an interceptor does to one message."""
    return lambda seen, message: changed(message, **fields) if seen == name else message


ATTACKERS_SEED = b"\x66" * 32


def test_relays_key_swapped_on_the_way(meddled: tuple[Ladder, Meddler]) -> None:
    """The enclave would make the attacker its peer, but the Relay's signature does not cover that request."""
    meddle = Interceptor(change_of("REQUEST", k4=os.urandom(32)))
    refuse_with(meddled, meddle, AuthFailedError.summary, AuthFailedError.summary)


def test_relays_key_swapped_and_signed_again(meddled: tuple[Ladder, Meddler]) -> None:
    """The attacker signs with its own key: the enclave agrees, and attests to another transcript."""
    meddle = Interceptor(change_of("REQUEST", k4=os.urandom(32)), ATTACKERS_SEED)
    refuse_with(meddled, meddle, "check user_data", BindingMismatchError.summary)


def test_a_byte_changed_that_the_attacker_cannot_read(meddled: tuple[Ladder, Meddler]) -> None:
    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return [frame(payload[:-1] + bytes((payload[-1] ^ 1,)) if name == "REQUEST" else payload)]

    refuse_with(meddled, meddle, BadFrameError.summary, BadFrameError.summary)


DOWNGRADE = {"k5": ["framing/native", "profile/plain"]}


def test_capabilities_downgraded_on_the_way(meddled: tuple[Ladder, Meddler]) -> None:
    """The keys of the exchange depend on HELLO: the enclave cannot open the answer to another one."""

    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return [frame(changed(payload, **DOWNGRADE) if name == "HELLO" else payload)]

    refuse_with(meddled, meddle, BadFrameError.summary, BadFrameError.summary)


def test_capabilities_downgraded_by_who_agrees_on_keys_with_both(meddled: tuple[Ladder, Meddler]) -> None:
    meddle = Interceptor(change_of("HELLO", **DOWNGRADE))
    refuse_with(meddled, meddle, AuthFailedError.summary, AuthFailedError.summary)


def test_an_honest_man_in_the_middle_sees_a_provisioning_succeed(meddled: tuple[Ladder, Meddler]) -> None:
    lab, meddler = meddled
    lab.backend.nsm.reset()
    succeeds(lab)
    assert "HELLO REQUEST RESPONSE RESULT" in " ".join(name for _, name, _ in meddler.seen)


def test_nothing_can_be_read_on_the_wire_after_hello(meddled: tuple[Ladder, Meddler]) -> None:
    """Addresses, names, PCRs, keys: the Relay's request and the Enclave's attestation, in any form."""
    lab, meddler = meddled
    lab.backend.nsm.reset()
    meddler.seen.clear()
    succeeds(lab)
    config, status = lab.backend.relay_config(), lab.relay_status()
    attested = status["attestation"]
    secrets: list[bytes] = [
        lab.topology.enclave4.encode(),
        lab.topology.relay4.encode(),
        ip_address(lab.topology.enclave4).packed,
        b"0.0.0.0/0",
        *(name.encode() for name in config["dns"].get("search", [])),
        attested["module_id"].encode(),
        *(bytes.fromhex(value) for value in attested["pcrs"].values() if set(value) != {"0"}),
        b64decode(attested["public_key"]),
        b64decode(status["wireguard"]["public_key"]),
        b"module_id",
        b"certificate",
        b"framing/",
        b"profile/",
    ]
    sealed = [payload for _, name, payload in meddler.seen if name != "HELLO"]
    assert sum(map(len, sealed)) > 4000
    assert not [secret for secret in secrets if any(secret in payload for payload in sealed)]


def test_response_of_another_exchange_replayed(meddled: tuple[Ladder, Meddler]) -> None:
    """A genuine RESPONSE, recorded from a good exchange, answers the next one: this counts only as interference."""
    lab, meddler = meddled
    lab.backend.nsm.reset()
    succeeds(lab)
    recorded = next(payload for _, name, payload in reversed(meddler.seen) if name == "RESPONSE")

    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return [frame(recorded if name == "RESPONSE" else payload)]

    attempt = Attempt(lab)
    meddler.meddle = meddle
    attempt.fails(BadFrameError.summary, BadFrameError.summary)
    assert lab.relay_status()["ready"]
    lab.probe(Node.ENCLAVE, "udp", lab.topology.external4, "7")


def test_document_of_another_exchange_replayed(meddled: tuple[Ladder, Meddler]) -> None:
    """The same from an attacker who can open and seal: the document is genuine, but from another exchange."""
    lab, meddler = meddled
    recorder = Interceptor(signing_seed=ATTACKERS_SEED)
    refuse_with(meddled, recorder, "check user_data", BindingMismatchError.summary)
    document = recorder.message("RESPONSE")[3]
    meddle = Interceptor(change_of("RESPONSE", k3=document), ATTACKERS_SEED)
    refuse_with((lab, meddler), meddle, "check nonce.mismatch", AttestationRejectedError.summary)


def test_other_codes_document(meddled: tuple[Ladder, Meddler]) -> None:
    """The attacker runs its own enclave, genuine but with other code, and has it attest to this very exchange."""
    lab, _ = meddled
    refuse_with(meddled, attackers_enclave(lab, "attacker"), "check pcr.set", PolicyError.summary)


def attackers_enclave(lab: Ladder, name: str) -> Meddle:
    path = lab.backend.directory / f"nsm/{name}.sock"
    lab.backend.nsm.create(name, str(path), measurements={number: os.urandom(48) for number in range(3)})

    def attest(request: bytes) -> bytes:
        module = UnixSecureModule(str(path))
        try:
            return module.request(request)
        finally:
            module.close()

    return SwappedResponse(attest, ANOTHER_KEY, ATTACKERS_SEED)


def test_other_codes_document_ends_no_tunnel_that_works(own_tunnel: Ladder) -> None:
    """The same later: the Relay knows which enclave its tunnel leads to, and the document comes from another one."""
    backend, listener = own_tunnel.backend, own_tunnel.backend.directory / "swapper"
    before = own_tunnel.relay_status()

    def attempts(kind: str) -> int:
        return int(own_tunnel.relay_status()["provisioning"]["attempts"][kind])

    meddle = attackers_enclave(own_tunnel, "neighbour")
    with Meddler(listener, lambda: backend.dial_enclave(PROVISIONING_PORT), meddle=meddle) as meddler:
        backend.divert(PROVISIONING_PORT, listener)
        refused = attempts("rejected")
        ask_for_attestation_until(own_tunnel, lambda: attempts("rejected") > refused, "the Relay to refuse it")
        status = own_tunnel.relay_status()
        assert "module_id.launched" in status["provisioning"]["error"]["what"]
        assert status["ready"]
        own_tunnel.probe(Node.ENCLAVE, "udp", own_tunnel.topology.external4, "7")

        meddler.meddle = untouched
        accepted = attempts("ok")
        ask_for_attestation_until(own_tunnel, lambda: attempts("ok") > accepted, "the Relay to accept its enclave")
        backend.divert(PROVISIONING_PORT, None)
    status = own_tunnel.relay_status()
    assert status["ready"]
    assert status["attestation"]["module_id"] == before["attestation"]["module_id"]
    own_tunnel.probe(Node.ENCLAVE, "udp", own_tunnel.topology.external4, "7")


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack(">I", 1 << 30),
        struct.pack(">I", 16 * 1024 + 1),
        frame(b"\xff" * 100),
        frame(cbor2.dumps({1: 1, 2: 2, 3: b"document"})),
        frame(cbor2.dumps({1: 1, 2: 255, 3: 8})),
    ],
    ids=["huge", "one-byte-too-long", "garbage", "response-in-the-clear", "error-in-the-clear"],
)
def test_bad_frame_to_the_relay(meddled: tuple[Ladder, Meddler], answer: bytes) -> None:
    def meddle(kind: Kind, name: str, payload: bytes) -> list[bytes]:
        return [answer if name == "RESPONSE" else frame(payload)]

    refuse_with(meddled, meddle, BadFrameError.summary, None)


@pytest.mark.parametrize(
    ("answer", "relay"),
    [
        (b"\xff" * 100, BadCborError.summary),
        (cbor2.dumps({1: 1, 2: 2}), BadFieldError.summary),
        (cbor2.dumps({1: 7, 2: 2, 3: b""}), UnsupportedVersionError.summary),
    ],
    ids=["garbage", "field-missing", "other-version"],
)
def test_bad_message_to_the_relay(meddled: tuple[Ladder, Meddler], answer: bytes, relay: str) -> None:
    meddle = Interceptor(lambda name, message: answer if name == "RESPONSE" else message, ATTACKERS_SEED)
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
    "attack",
    [struct.pack(">I", 0xFFFFFFFF), struct.pack(">I", 8 * 1024 + 1), frame(b""), frame(os.urandom(200))],
    ids=["huge", "one-byte-too-long", "empty", "garbage"],
)
def test_bad_frame_to_the_enclave(unclaimed: Ladder, attack: bytes) -> None:
    with connect(unclaimed) as (sock, _):
        sock.sendall(attack)
        error = cbor2.loads(receive(sock))
        assert (error[2], error[3]) == (MESSAGE_ERROR, WireCode.BAD_FRAME)
        assert sock.recv(1) == b""  # and the connection is over
    assert is_unprovisioned(unclaimed)


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (b"\xff" * 200, WireCode.BAD_CBOR),
        (cbor2.dumps({1: 1, 2: 1}), WireCode.BAD_FIELD),
        (cbor2.dumps({1: 2, 2: 1}), WireCode.UNSUPPORTED_VERSION),
    ],
    ids=["garbage", "fields-missing", "other-version"],
)
def test_bad_message_to_the_enclave(unclaimed: Ladder, attack: bytes, code: WireCode) -> None:
    with connect(unclaimed) as (sock, hello):
        half = RelayHalf(hello, os.urandom(32))
        sock.sendall(frame(half.request(attack)))
        error = cbor2.loads(half.open(receive(sock)))
        assert (error[2], error[3]) == (MESSAGE_ERROR, code)
        assert sock.recv(1) == b""
    assert is_unprovisioned(unclaimed)


@contextmanager
def connect(lab: Ladder) -> Iterator[tuple[socket.socket, bytes]]:
    """Return a connection to the Enclave's provisioning port, and its HELLO."""
    with lab.backend.dial_enclave(PROVISIONING_PORT) as sock:
        yield sock, receive(sock)


def test_a_relay_after_bad_frames(unclaimed: Ladder) -> None:
    unclaimed.start_relay()
    unclaimed.wait_ready()


def receive(sock: socket.socket) -> bytes:
    """One message."""
    (length,) = struct.unpack(">I", receive_exactly(sock, 4))
    return receive_exactly(sock, length)


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the Enclave closed the connection"
        data += piece
    return data


def test_somebody_else_cannot_take_over(own_tunnel: Ladder) -> None:
    """The enclave is ACTIVE: a stranger who follows the protocol perfectly, but is not its relay, is refused."""

    with own_tunnel.backend.dial_enclave(PROVISIONING_PORT) as sock:
        failure = provision(own_tunnel, sock)
    assert isinstance(failure.error, AlreadyProvisionedError)
    own_tunnel.probe(Node.ENCLAVE, "udp", own_tunnel.topology.external4, "7")
    assert own_tunnel.relay_status()["ready"]
