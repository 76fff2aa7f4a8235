from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from wgvsock.wireguard.events import Dropped, DropReason


def test_reasons_are_words_for_metrics() -> None:
    values = [reason.value for reason in DropReason]
    assert len(set(values)) == len(values)
    assert all(value.isidentifier() and value.islower() for value in values)


def test_events_are_frozen_values() -> None:
    event = Dropped(DropReason.INVALID_MAC1, "somewhere")
    assert event == Dropped(DropReason.INVALID_MAC1, "somewhere", None)
    with pytest.raises(FrozenInstanceError):
        event.endpoint = "elsewhere"  # type: ignore[misc]
