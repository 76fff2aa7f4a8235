"""A client that waits for an attempt learns of one that began after the order, and of no earlier one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wgvsock.attestation.errors import PcrSetError
from wgvsock.provisioning.errors import ConnectionLostError
from wgvsock.relay.enclaves.attempts import Attempts
from wgvsock.relay.judgements import Judgements
from wgvsock.testing import without_waiting

ATTESTED: Any = SimpleNamespace(module_id="i-0-enc0", pcrs={}, matched="")


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts("wallet", Judgements(str(tmp_path), "relay", None, wall_clock=lambda: 0))


@without_waiting
async def test_an_order_is_answered_by_the_attempt_that_begins_after_it(attempts: Attempts) -> None:
    attempts.begin()
    outcome = attempts.next_outcome()
    attempts.fail(ConnectionLostError("gone"), "of the attempt before")
    assert not outcome.done()
    attempts.begin()
    attempts.begin()  # the configuration changed meanwhile: it was given up, and another one begins
    error = PcrSetError("PCR0 differs")
    attempts.fail(error, "refused")
    assert outcome.result() is error
    assert attempts.refusal is not None
    assert attempts.counts == {"ok": 0, "failed": 1, "rejected": 1}


@without_waiting
async def test_success_is_an_outcome_and_the_refusal_is_remembered(attempts: Attempts) -> None:
    attempts.fail(PcrSetError("PCR0 differs"), "refused")
    outcome, given_up = attempts.next_outcome(), attempts.next_outcome()
    given_up.cancel()
    attempts.begin()
    attempts.succeed(ATTESTED)
    assert outcome.result() is None
    assert attempts.last_error is None
    assert attempts.refusal is not None
