from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wgvsock.wireguard.tai64n import from_tai64n, next_label, tai64n

TIMES = st.integers(0, 2**33 * 10**9)


def test_known_labels() -> None:
    # cr.yp.to/libtai/tai64.html: 1970-01-01 00:00:00 UTC was 10 seconds behind TAI.
    assert tai64n(0).hex() == "400000000000000a00000000"
    assert tai64n(1_800_000_000 * 10**9 + 500).hex() == "400000006b49d20a000001f4"


@given(TIMES)
def test_from_tai64n_is_the_inverse(time: int) -> None:
    assert from_tai64n(tai64n(time)) == time
    assert len(tai64n(time)) == 12


@given(TIMES, TIMES)
def test_labels_order_as_times_do(a: int, b: int) -> None:
    assert (tai64n(a) < tai64n(b)) == (a < b)


@given(st.lists(TIMES, min_size=2))
def test_the_next_label_is_always_greater(times: list[int]) -> None:
    previous = b""
    for time in times:
        label = next_label(time, previous)
        assert label > previous
        previous = label


@given(TIMES)
def test_labels_give_away_no_fine_clock(time: int) -> None:
    shown = from_tai64n(next_label(time, b""))
    assert shown % 2**25 == 0
    assert 0 <= time - shown < 2**25


def test_a_clock_that_was_set_back_still_counts_on() -> None:
    first = next_label(2 * 10**18, b"")
    second = next_label(10**18, first)
    assert from_tai64n(second) - from_tai64n(first) == 2**25
