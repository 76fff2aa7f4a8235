"""Two bounded tables: who may be answered, and the latest additions."""

from __future__ import annotations

from wgvsock.egress.flows import _CHANCES, IncomingFlows, Recent


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_whoever_came_may_be_answered() -> None:
    flows = IncomingFlows(30.0)
    assert not flows.answers(b"a", 0)
    assert not flows.refresh(b"a", 0)
    flows.add(b"a", 0)
    assert flows.refresh(b"a", 1)
    assert flows.answers(b"a", 1)
    assert not flows.answers(b"b", 1)
    assert len(flows) == 1


def test_silence_ends_a_flow_and_packets_of_either_direction_keep_it() -> None:
    flows = IncomingFlows(30.0)
    flows.add(b"a", 0)
    assert flows.answers(b"a", 30)
    assert flows.answers(b"a", 60)
    assert flows.refresh(b"a", 90)
    assert flows.answers(b"a", 90)
    assert not flows.answers(b"a", 120.5)
    assert flows.refresh(b"a", 121)  # its next packet begins it anew
    assert flows.answers(b"a", 122)


def test_strangers_push_each_other_out_and_not_who_is_served() -> None:
    flows = IncomingFlows(float("inf"), limit=32)
    flows.add(b"served", 0)
    for number in range(10_000):
        flows.add(key(number), number)
        flows.refresh(b"served", number + 0.5)
        assert len(flows) <= 32
    assert flows.answers(b"served", 10_000)
    assert not flows.answers(key(0), 10_000)
    assert flows.answers(key(9_999), 10_000)


def test_a_flow_is_spared_for_what_it_did_since_it_was_spared_last() -> None:
    flows = IncomingFlows(float("inf"), limit=2)
    flows.add(b"once", 0)
    flows.refresh(b"once", 1)
    flows.add(b"b", 2)
    flows.add(b"c", 3)  # "once" is spared, and idle from now on
    assert flows.refresh(b"once", 1)
    flows.add(b"d", 4)
    flows.add(b"e", 5)
    assert not flows.answers(b"once", 6)


def test_where_all_are_used_the_oldest_goes_after_so_many_looks() -> None:
    flows = IncomingFlows(float("inf"), limit=4 * _CHANCES)
    for number in range(4 * _CHANCES):
        flows.add(key(number), 0)
        flows.refresh(key(number), 1)
    flows.add(b"new", 2)
    assert len(flows) == 4 * _CHANCES
    assert [number for number in range(4 * _CHANCES) if not flows.answers(key(number), 3)] == [_CHANCES]


def test_what_was_added_last() -> None:
    recent = Recent(3)
    for each in (b"a", b"b", b"c", b"a", b"d"):
        recent.add(each)
    assert set(recent.keys) == {b"b", b"c", b"d"}
    recent.clear()
    assert not recent.keys
