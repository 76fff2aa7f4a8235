from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wgvsock.provisioning.deadlines import DEFAULT_DEADLINES, LISTEN_BACKLOG, Deadlines, TokenBucket


def test_the_defaults_are_those_of_the_specification() -> None:
    assert (
        Deadlines(exchange=10.0, frame=3.0, secure_module=5.0, rollback=30.0, silence=180.0, handshake=10.0)
        == DEFAULT_DEADLINES
    )
    assert LISTEN_BACKLOG == 4


def test_a_slow_machine_scales_all_of_them() -> None:
    assert Deadlines().scaled(10.0) == Deadlines(100.0, 30.0, 50.0, 300.0, 1800.0, 100.0)


def test_a_burst_and_then_one_a_second() -> None:
    bucket = TokenBucket(1.0, 5)
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]
    assert not bucket.take(100.9)
    assert bucket.take(101.9)
    assert not bucket.take(101.9)


def test_tokens_do_not_pile_up_above_the_burst() -> None:
    bucket = TokenBucket(1.0, 2)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]
    assert [bucket.take(9999.0) for _ in range(3)] == [True, True, False]


@given(steps=st.lists(st.floats(0, 5), min_size=1, max_size=40))
def test_never_more_than_burst_plus_rate_times_time(steps: list[float]) -> None:
    bucket, now, taken = TokenBucket(1.0, 5), 0.0, 0
    for step in steps:
        now += step
        taken += bucket.take(now)
    assert taken <= 5 + now + 1e-6
