"""What each refusal may do to a working enclave and to another, and when trust ends, with a manual clock."""

from __future__ import annotations

import inspect
import math

import pytest

from wgvsock.attestation import errors as checks
from wgvsock.errors import AttestationError, TransportError, WgvsockError
from wgvsock.provisioning import errors as exchange
from wgvsock.relay.enclaves.trust import ASK_AFTER_LOSS, STEPPED_BACK_PAUSE, Trust, Verdict, judge
from wgvsock.relay.errors import HandshakeTimeoutError
from wgvsock.system.nitro_cli import NitroCliError
from wgvsock.testing import ManualClock

MODULE_ID = "i-0123456789abcdef0-enc0123456789abcdef"

WORKS = {"trusted": True, "alive": True, "lost": False}
INTERRUPTED = {"trusted": True, "alive": False, "lost": False}
LOST = {"trusted": True, "alive": False, "lost": True}
LAPSED = {"trusted": False, "alive": True, "lost": False}
NOBODY = {"trusted": False, "alive": False, "lost": False}  # without a peer nothing is lost


def _of(module: object, base: type[WgvsockError]) -> list[type[WgvsockError]]:
    return [kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, base)]


REJECTIONS = [kind("why") for kind in _of(checks, checks.RejectedDocumentError)]
FAILURES: list[WgvsockError] = [
    *(kind("why") for kind in _of(exchange, exchange.ExchangeError) if kind is not exchange.SupersededError),
    TransportError("no connection"),
    HandshakeTimeoutError("no handshake"),
    NitroCliError("no answer"),
    AttestationError("another refusal"),
]


def _final() -> checks.RejectedDocumentError:
    error = checks.PcrSetError("other code")
    error.final = True
    return error


@pytest.mark.parametrize("error", [*REJECTIONS, *FAILURES], ids=lambda error: type(error).__name__)
def test_what_anybody_on_the_way_can_say_ends_nothing_that_works(error: WgvsockError) -> None:
    assert judge(error, **WORKS) is Verdict.KEEP
    assert judge(error, **INTERRUPTED) is Verdict.KEEP
    assert judge(error, **LOST) is Verdict.CLOSE
    assert judge(error, **LAPSED) is Verdict.CLOSE
    assert judge(error, **NOBODY) is Verdict.CLOSE


@pytest.mark.parametrize("state", [WORKS, INTERRUPTED, LOST, LAPSED, NOBODY], ids=str)
def test_the_enclave_s_own_word_ends_everything_at_once(state: dict[str, bool]) -> None:
    assert judge(_final(), **state) is Verdict.CONDEMN


def test_a_relay_steps_back_only_when_the_enclave_has_hung_up() -> None:
    error = exchange.SupersededError("a younger one")
    assert judge(error, **INTERRUPTED) is Verdict.STEP_BACK
    assert judge(error, **LOST) is Verdict.STEP_BACK
    assert judge(error, **NOBODY) is Verdict.STEP_BACK  # a start beside a younger relay
    assert judge(error, **WORKS) is Verdict.KEEP  # the enclave would not have let the tunnel live


def test_questions_while_stepped_back_are_rarer_than_the_longest_back_off() -> None:
    assert 30 * 1.25 < STEPPED_BACK_PAUSE <= 180 / 3


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def granted(clock: ManualClock) -> Trust:
    trust = Trust()
    trust.grant(MODULE_ID, clock.now, period=3600.0, grace=60.0)
    return trust


def test_before_the_first_attestation_nothing_counts(clock: ManualClock) -> None:
    trust = Trust()
    assert trust.until < clock.now
    assert trust.attest_by < clock.now
    assert trust.module_id is None


def test_an_attestation_counts_for_its_period_and_the_grace(clock: ManualClock) -> None:
    trust = granted(clock)
    assert (trust.attest_by, trust.until) == (clock.now + 3600.0, clock.now + 3660.0)
    assert trust.module_id == MODULE_ID


def test_a_name_that_cannot_be_compared_is_not_kept(clock: ManualClock) -> None:
    trust = Trust()
    trust.grant("not-an-enclave", clock.now, period=1.0, grace=1.0)
    assert trust.module_id is None


def test_a_demand_is_met_by_an_attestation_that_began_after_it(clock: ManualClock) -> None:
    trust = granted(clock)
    trust.demand(clock.advance(10.0), grace=60.0)
    assert (trust.attest_by, trust.until) == (clock.now, clock.now + 60.0)
    trust.grant(MODULE_ID, clock.advance(1.0), period=3600.0, grace=60.0)  # this one was under way already
    assert (trust.attest_by, trust.until) == (clock.now, clock.now + 60.0)
    trust.demanded = False
    trust.grant(MODULE_ID, clock.now, period=3600.0, grace=60.0)
    assert trust.attest_by == clock.now + 3600.0


def test_demands_do_not_prolong_trust(clock: ManualClock) -> None:
    trust = granted(clock)
    trust.demand(clock.now, grace=60.0)
    until = trust.until
    for _ in range(5):
        trust.demand(clock.advance(50.0), grace=60.0)
        assert trust.until == until


def test_revoked(clock: ManualClock) -> None:
    trust = granted(clock)
    trust.revoke()
    assert (trust.module_id, trust.until) == (None, -math.inf)


def test_a_loss_is_asked_about_once(clock: ManualClock) -> None:
    trust = granted(clock)
    due = trust.attest_by
    trust.observe(clock.now, 0.0)
    trust.observe(clock.now, ASK_AFTER_LOSS)  # no longer than a cut
    assert trust.attest_by == due
    trust.observe(clock.advance(1.5), 1.5)
    assert trust.attest_by == clock.now
    later = trust.attest_by = clock.now + 30.0  # it failed, and the back-off decides
    trust.observe(clock.advance(1.0), 2.5)
    assert trust.attest_by == later
    trust.observe(clock.advance(1.0), 0.0)
    trust.observe(clock.advance(9.0), 1.5)  # another one
    assert trust.attest_by == clock.now
