from __future__ import annotations

import pytest

from wgvsock.provisioning.capabilities import (
    DEFAULT_CAPABILITIES,
    FRAMING_COMPAT,
    FRAMING_NATIVE,
    PROFILE_GSO,
    PROFILE_PLAIN,
    check_choice,
    choose,
    framing_of,
    native_with,
    profile_of,
)
from wgvsock.provisioning.errors import ConfigRejectedError


@pytest.mark.parametrize(
    ("offered", "preferred", "chosen"),
    [
        (DEFAULT_CAPABILITIES, DEFAULT_CAPABILITIES, (FRAMING_NATIVE, PROFILE_GSO)),
        (DEFAULT_CAPABILITIES, (FRAMING_NATIVE, PROFILE_PLAIN, PROFILE_GSO), (FRAMING_NATIVE, PROFILE_PLAIN)),
        ((FRAMING_NATIVE, PROFILE_PLAIN), DEFAULT_CAPABILITIES, (FRAMING_NATIVE, PROFILE_PLAIN)),
        # A super-packet does not fit into the compat framing, so that the next best profile is taken.
        ((FRAMING_COMPAT, PROFILE_GSO, PROFILE_PLAIN), DEFAULT_CAPABILITIES, (FRAMING_COMPAT, PROFILE_PLAIN)),
        (("later/thing", *DEFAULT_CAPABILITIES), DEFAULT_CAPABILITIES, (FRAMING_NATIVE, PROFILE_GSO)),
    ],
)
def test_the_relay_chooses_the_best_pair_in_common(
    offered: tuple[str, ...], preferred: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    assert choose(offered, preferred) == chosen
    check_choice(chosen, offered)
    assert (framing_of(chosen), profile_of(chosen)) == chosen


@pytest.mark.parametrize(
    "offered",
    [(), (FRAMING_NATIVE,), (PROFILE_PLAIN,), (FRAMING_COMPAT, PROFILE_GSO), ("framing/later", "profile/later")],
)
def test_without_a_pair_in_common_there_is_no_choice(offered: tuple[str, ...]) -> None:
    with pytest.raises(ConfigRejectedError):
        choose(offered, DEFAULT_CAPABILITIES)


@pytest.mark.parametrize(
    "chosen",
    [
        (),
        (FRAMING_NATIVE,),
        (FRAMING_NATIVE, FRAMING_COMPAT),
        (PROFILE_GSO, PROFILE_PLAIN),
        (FRAMING_NATIVE, PROFILE_GSO, PROFILE_PLAIN),
        (FRAMING_COMPAT, PROFILE_GSO),
        (FRAMING_NATIVE, "profile/later"),
        ("framing/native\n", PROFILE_PLAIN),
    ],
)
def test_the_enclave_accepts_no_other_choice(chosen: tuple[str, ...]) -> None:
    with pytest.raises(ConfigRejectedError):
        check_choice(chosen, DEFAULT_CAPABILITIES)


def test_what_was_not_offered_cannot_be_chosen() -> None:
    with pytest.raises(ConfigRejectedError, match="not offered"):
        check_choice((FRAMING_NATIVE, PROFILE_GSO), (FRAMING_NATIVE, PROFILE_PLAIN))


def test_profiles_of_a_configuration_keep_their_order() -> None:
    assert native_with(("gso", "plain")) == (FRAMING_NATIVE, PROFILE_GSO, PROFILE_PLAIN)
    assert native_with(("plain",)) == (FRAMING_NATIVE, PROFILE_PLAIN)
