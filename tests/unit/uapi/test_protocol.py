from __future__ import annotations

import errno
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgvsock.errors import RemoteProtocolError
from wgvsock.uapi import protocol
from wgvsock.uapi.protocol import (
    AllowedIpChange,
    DeviceChange,
    DeviceState,
    GetRequest,
    PeerChange,
    PeerState,
    RejectedRequest,
    Request,
    RequestReader,
    format_state,
    format_status,
)

KEY = bytes(range(32))
PSK = bytes(range(32, 64))
PEER = f"public_key={KEY.hex()}\n"


def read(data: bytes | str, chunk: int = 1 << 20) -> list[Request]:
    reader = RequestReader()
    raw = data.encode() if isinstance(data, str) else data
    requests = []
    for start in range(0, len(raw), chunk):
        reader.receive(raw[start : start + chunk])
        while (request := reader.next_request()) is not None:
            requests.append(request)
    return requests


def change(lines: str) -> DeviceChange:
    (request,) = read(f"set=1\n{lines}\n")
    assert isinstance(request, DeviceChange), request
    return request


def peer(lines: str) -> PeerChange:
    (found,) = change(PEER + lines).peers
    return found


def refusal(lines: str) -> int:
    """The error number that wireguard-go 0.0.20220316 answers, negated. See tests/e2e/test_wg_uapi.py."""
    (request,) = read(f"set=1\n{lines}\n")
    assert isinstance(request, RejectedRequest), request
    return request.error.errno


def test_get() -> None:
    assert read("get=1\n\n") == [GetRequest()]


def test_several_requests_on_a_connection() -> None:
    assert read("get=1\n\nset=1\nfwmark=7\n\nget=1\n\n") == [GetRequest(), DeviceChange(fwmark=7), GetRequest()]


def test_get_followed_by_anything_but_an_empty_line_is_refused_and_that_byte_forgotten() -> None:
    rejected, get = read("get=1\nxget=1\n\n")
    assert isinstance(rejected, RejectedRequest)
    assert rejected.error.errno == errno.EINVAL
    assert get == GetRequest()


@pytest.mark.parametrize("operation", ["get=2\n\n", "set=1\r\n\n", "\n", "GET=1\n\n", "x" * 100_000 + "\n"])
def test_any_other_operation_ends_the_connection(operation: str) -> None:
    with pytest.raises(RemoteProtocolError, match="neither get=1 nor set=1"):
        read(operation)


def test_device_settings() -> None:
    assert change(f"private_key={KEY.hex().upper()}\nlisten_port=51820\nfwmark=4294967295\nreplace_peers=true\n") == (
        DeviceChange(private_key=KEY, listen_port=51820, fwmark=0xFFFFFFFF, replace_peers=True)
    )


def test_nothing_set_is_nothing_changed() -> None:
    assert change("") == DeviceChange()


def test_the_last_line_of_a_setting_counts() -> None:
    assert change("listen_port=1\nlisten_port=2\n").listen_port == 2


def test_peer_settings() -> None:
    assert peer(
        f"update_only=true\npreshared_key={PSK.hex()}\nendpoint=0.0.0.6:51820\npersistent_keepalive_interval=25\n"
        "replace_allowed_ips=true\nallowed_ip=10.0.0.1/24\nallowed_ip=::/0\nallowed_ip=-10.9.0.0/16\n"
        "protocol_version=1\n"
    ) == PeerChange(
        KEY,
        update_only=True,
        preshared_key=PSK,
        endpoint="0.0.0.6:51820",
        persistent_keepalive=25,
        replace_allowed_ips=True,
        allowed_ips=(
            AllowedIpChange(ipaddress.ip_network("10.0.0.0/24")),
            AllowedIpChange(ipaddress.ip_network("::/0")),
            AllowedIpChange(ipaddress.ip_network("10.9.0.0/16"), remove=True),
        ),
    )


def test_peers_follow_one_another() -> None:
    first, second = change(f"{PEER}allowed_ip=10.0.0.0/8\npublic_key={PSK.hex()}\nremove=true\n").peers
    assert first == PeerChange(KEY, allowed_ips=(AllowedIpChange(ipaddress.ip_network("10.0.0.0/8")),))
    assert second == PeerChange(PSK, remove=True)


def test_replacing_allowed_ips_takes_back_those_of_earlier_lines() -> None:
    found = peer("allowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=11.0.0.0/8\n")
    assert [str(allowed.network) for allowed in found.allowed_ips] == ["11.0.0.0/8"]
    assert found.replace_allowed_ips


def test_a_carriage_return_before_the_line_feed_is_dropped() -> None:
    assert read("set=1\nfwmark=8\r\n\r\n") == [DeviceChange(fwmark=8)]


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ("nonsense\n", errno.EPROTO),
        ("nonsense=1\n", errno.EINVAL),
        ("private_key=00\n", errno.EINVAL),
        ("private_key=" + "zz" * 32 + "\n", errno.EINVAL),
        ("private_key=" + "00 " * 31 + "00\n", errno.EINVAL),  # 32 bytes to bytes.fromhex()
        ("listen_port=70000\n", errno.EINVAL),
        ("listen_port=+5\n", errno.EINVAL),
        ("listen_port=-5\n", errno.EINVAL),
        ("listen_port=\n", errno.EINVAL),
        ("listen_port=٣\n", errno.EINVAL),
        ("listen_port=" + "9" * 4000 + "\n", errno.EINVAL),
        ("fwmark=0x10\n", errno.EINVAL),
        ("fwmark=4294967296\n", errno.EINVAL),
        ("replace_peers=false\n", errno.EINVAL),
        ("allowed_ip=10.0.0.0/8\n", errno.EINVAL),  # a peer's setting
        ("public_key=\n", errno.EINVAL),
        (PEER + "listen_port=1\n", errno.EINVAL),  # a device's setting
        (PEER + "preshared_key=00\n", errno.EINVAL),
        (PEER + "persistent_keepalive_interval=65536\n", errno.EINVAL),
        (PEER + "persistent_keepalive_interval=off\n", errno.EINVAL),
        (PEER + "protocol_version=2\n", errno.EINVAL),
        (PEER + "update_only=false\n", errno.EINVAL),
        (PEER + "remove=1\n", errno.EINVAL),
        (PEER + "replace_allowed_ips=1\n", errno.EINVAL),
        (PEER + "allowed_ip=10.0.0.1\n", errno.EINVAL),
        (PEER + "allowed_ip=10.0.0.1/33\n", errno.EINVAL),
        (PEER + "allowed_ip=10.0.0.0/255.0.0.0\n", errno.EINVAL),
        (PEER + "allowed_ip=010.0.0.1/8\n", errno.EINVAL),
        (PEER + "allowed_ip=fe80::1%eth0/64\n", errno.EINVAL),
        (PEER + "allowed_ip=example.com/8\n", errno.EINVAL),
        (PEER + "allowed_ip=\n", errno.EINVAL),
        ("x" * 5000 + "=1\n", errno.EIO),
        ("x" * 100_000 + "\n", errno.EIO),
    ],
)
def test_refused(lines: str, number: int) -> None:
    assert refusal(lines) == number


def test_leading_zeros_are_taken() -> None:
    assert change("listen_port=" + "0" * 50 + "7\n").listen_port == 7
    assert peer("allowed_ip=10.0.0.1/024\n").allowed_ips[0].network == ipaddress.ip_network("10.0.0.0/24")


def test_the_first_error_counts_and_the_connection_goes_on() -> None:
    rejected, get = read(f"set=1\nlisten_port=x\nnonsense\n{PEER}\nget=1\n\n")
    assert isinstance(rejected, RejectedRequest)
    assert rejected.error.errno == errno.EINVAL
    assert get == GetRequest()


def test_a_request_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_REQUEST", 100)
    assert change("fwmark=1\n" * 11).fwmark == 1
    assert refusal("fwmark=1\n" * 12) == errno.EIO


def test_a_request_has_a_number_of_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_PEERS", 2)
    assert len(change(PEER * 2).peers) == 2
    assert refusal(PEER * 3) == errno.EINVAL


def test_memory_is_bounded_by_a_line() -> None:
    reader = RequestReader()
    reader.receive(b"set=1\n")
    for _ in range(100):
        reader.receive(b"x" * 65536)
        assert reader.next_request() is None
        assert len(reader._buffer) <= protocol.MAX_LINE + 1


def test_idle_is_between_requests() -> None:
    reader = RequestReader()
    for data, idle in (
        (b"", True),
        (b"g", False),
        (b"et=1\n", False),
        (b"\n", True),
        (b"set=1\n", False),
        (b"\n", True),
    ):
        reader.receive(data)
        reader.next_request()
        assert reader.idle is idle


def test_keys_are_in_no_repr() -> None:
    found = change(f"private_key={KEY.hex()}\npublic_key={PSK.hex()}\npreshared_key={KEY.hex()}\n")
    assert repr(KEY) not in repr(found)
    state = DeviceState(KEY, 0, 0, (PeerState(PSK, KEY, None, 0, 0, 0, 0, ()),))
    assert repr(KEY) not in repr(state)


LINES = st.lists(
    st.sampled_from(
        [
            "get=1\n",
            "set=1\n",
            "\n",
            "fwmark=5\n",
            "bad\n",
            PEER,
            "allowed_ip=1.2.3.4/32\n",
            "x\r\n",
            "é=1\n",
            "y" * 9000,
        ]
    ),
    max_size=20,
).map("".join)


@given(LINES, st.integers(1, 50))
def test_requests_do_not_depend_on_chunks(text: str, chunk: int) -> None:
    def outcome(size: int) -> tuple[list[str], bool]:
        reader, seen, raw = RequestReader(), list[str](), text.encode()
        try:
            for start in range(0, len(raw), size):
                reader.receive(raw[start : start + size])
                while (request := reader.next_request()) is not None:
                    seen.append(repr(request))
        except RemoteProtocolError:
            return seen, True
        return seen, False

    assert outcome(chunk) == outcome(1 << 20)


@given(st.binary(max_size=300))
def test_any_bytes_are_requests_or_a_protocol_error(data: bytes) -> None:
    for prefix in (b"", b"set=1\n", b"set=1\n" + PEER.encode()):
        try:
            for request in read(prefix + data):
                assert isinstance(request, GetRequest | DeviceChange | RejectedRequest)
        except RemoteProtocolError:
            pass


def test_state() -> None:
    state = DeviceState(
        private_key=KEY,
        listen_port=51820,
        fwmark=0x10,
        peers=(
            PeerState(
                public_key=PSK,
                preshared_key=bytes(32),
                endpoint="0.0.0.6:51820",
                last_handshake=1_700_000_000_000_000_123,
                rx_bytes=1,
                tx_bytes=2,
                persistent_keepalive=25,
                allowed_ips=(ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("::/0")),
            ),
        ),
    )
    assert b"".join(format_state(state)).decode() == (
        f"private_key={KEY.hex()}\nlisten_port=51820\nfwmark=16\n"
        f"public_key={PSK.hex()}\npreshared_key={bytes(32).hex()}\nendpoint=0.0.0.6:51820\n"
        "last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=123\nrx_bytes=1\ntx_bytes=2\n"
        "persistent_keepalive_interval=25\nprotocol_version=1\nallowed_ip=10.0.0.0/24\nallowed_ip=::/0\n"
    )


def test_an_unset_device_has_no_lines() -> None:
    assert list(format_state(DeviceState(None, 0, 0, ()))) == [b""]
    peer = PeerState(KEY, KEY, None, 0, 0, 0, 0, ())
    assert b"endpoint=" not in b"".join(format_state(DeviceState(None, 0, 0, (peer,))))


def test_status_is_negative() -> None:
    assert format_status(0) == b"errno=0\n\n"
    assert format_status(errno.EINVAL) == b"errno=-22\n\n"
