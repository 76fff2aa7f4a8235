"""What a side can do on the data plane, as short texts, and how the relay chooses.

The enclave offers a list in HELLO; the relay chooses one framing and one profile and sends them in the configuration.
Both messages are inside the attested transcript, so nobody between can talk the two down. An unknown offer is ignored:
that is how a later version adds one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from wgvsock.provisioning.errors import ConfigRejectedError

FRAMING_NATIVE: Final = "framing/native"
FRAMING_COMPAT: Final = "framing/compat"
PROFILE_GSO: Final = "profile/gso"
PROFILE_PLAIN: Final = "profile/plain"

DEFAULT_CAPABILITIES: Final = (FRAMING_NATIVE, FRAMING_COMPAT, PROFILE_GSO, PROFILE_PLAIN)
"""Everything this version can do, best first."""

_FRAMINGS: Final = (FRAMING_NATIVE, FRAMING_COMPAT)
_PROFILES: Final = (PROFILE_GSO, PROFILE_PLAIN)


def choose(offered: Collection[str], preferred: Sequence[str]) -> tuple[str, str]:
    """Choose a framing and a profile that both sides can do.

    Args:
        offered: What the enclave offers.
        preferred: What the relay can do, best first.

    Raises:
        ConfigRejectedError: There is no framing or no profile in common.
    """
    common = [capability for capability in preferred if capability in offered]
    for framing in common:
        for profile in common:
            if framing in _FRAMINGS and profile in _PROFILES and _fit(framing, profile):
                return framing, profile
    raise ConfigRejectedError("relay and enclave have no framing and profile in common")


def check_choice(chosen: Sequence[str], offered: Collection[str]) -> None:
    """Check, at the enclave, that the relay chose one framing and one profile from the offer.

    Raises:
        ConfigRejectedError: It did not.
    """
    if not all(capability in offered for capability in chosen):
        raise ConfigRejectedError("a capability was chosen that was not offered")
    if len(chosen) != 2 or not _fit(framing_of(chosen), profile_of(chosen)):
        raise ConfigRejectedError("not exactly one framing and one profile that go together were chosen")


def framing_of(chosen: Sequence[str]) -> str:
    """The framing among the chosen capabilities.

    Raises:
        ConfigRejectedError: There is none.
    """
    return _first(chosen, _FRAMINGS)


def profile_of(chosen: Sequence[str]) -> str:
    """The profile among the chosen capabilities.

    Raises:
        ConfigRejectedError: There is none.
    """
    return _first(chosen, _PROFILES)


def _fit(framing: str, profile: str) -> bool:
    # The compat framing counts in 16 bits; a super-packet with its WireGuard header does not fit.
    return framing != FRAMING_COMPAT or profile == PROFILE_PLAIN


def _first(chosen: Sequence[str], kinds: Sequence[str]) -> str:
    for capability in chosen:
        if capability in kinds:
            return capability
    raise ConfigRejectedError("the chosen capabilities name no framing or no profile")
