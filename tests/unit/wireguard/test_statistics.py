from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from wgvsock.testing import DevicePair


def test_a_snapshot_does_not_change() -> None:
    pair = DevicePair()
    before = pair.alice.statistics()
    pair.alice_sends()
    after = pair.alice.statistics()
    assert before.peers[pair.alices_peer.public_key].tx_packets == 0
    assert after.peers[pair.alices_peer.public_key].tx_packets == 2
    with pytest.raises(FrozenInstanceError):
        after.cookie_replies_sent = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        after.peers[b""] = after.peers[pair.alices_peer.public_key]  # type: ignore[index]
