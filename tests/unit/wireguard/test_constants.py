from __future__ import annotations

from wgvsock.wireguard import constants
from wgvsock.wireguard.messages import CookieReply, HandshakeInitiation, HandshakeResponse, TransportData


def test_the_whitepaper_s_limits() -> None:
    # Section 6.1, table of constants.
    assert constants.REKEY_AFTER_MESSAGES == 1 << 60
    assert constants.REJECT_AFTER_MESSAGES == (1 << 64) - (1 << 13) - 1
    assert constants.REKEY_AFTER_TIME == 120
    assert constants.REJECT_AFTER_TIME == 180
    assert constants.REKEY_ATTEMPT_TIME == 90
    assert constants.REKEY_TIMEOUT == 5
    assert constants.KEEPALIVE_TIMEOUT == 10


def test_message_sizes_are_their_layouts() -> None:
    assert HandshakeInitiation.LAYOUT.size == constants.HANDSHAKE_INITIATION_SIZE == 148
    assert HandshakeResponse.LAYOUT.size == constants.HANDSHAKE_RESPONSE_SIZE == 92
    assert CookieReply.LAYOUT.size == constants.COOKIE_REPLY_SIZE == 64
    assert TransportData.LAYOUT.size == constants.TRANSPORT_HEADER_SIZE == 16
    assert constants.TRANSPORT_OVERHEAD == 32


def test_no_counter_can_pass_the_replay_window_twice_before_it_is_rejected() -> None:
    # The top of the counter's range stays out of reach of the window, so it never wraps.
    assert constants.REJECT_AFTER_MESSAGES + constants.REPLAY_WINDOW < 2**64
    assert constants.REPLAY_WINDOW == 8128
