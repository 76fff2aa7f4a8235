"""The data plane's capabilities of each side, as short texts, and how the relay chooses among them.

The enclave offers a list in HELLO. The relay chooses one framing and one profile and sends them in the configuration.
The attested transcript covers both messages, so an attacker in between cannot force a downgrade. The relay ignores an
unknown offer, so that a later version can add one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from wgvsock.provisioning.errors import ConfigRejectedError

FRAMING_NATIVE: Final = "framing/native"
FRAMING_COMPAT: Final = "framing/compat"
PROFILE_GSO: Final = "profile/gso"
PROFILE_PLAIN: Final = "profile/plain"

DEFAULT_CAPABILITIES: Final = (FRAMING_NATIVE, FRAMING_COMPAT, PROFILE_GSO, PROFILE_PLAIN)
"""Everything that this version supports, best first."""

_OF_PROFILE: Final = {"gso": PROFILE_GSO, "plain": PROFILE_PLAIN}
_FRAMINGS: Final = (FRAMING_NATIVE, FRAMING_COMPAT)
_PROFILES: Final = (PROFILE_GSO, PROFILE_PLAIN)


def native_with(profiles: Iterable[str]) -> tuple[str, ...]:
    """The native framing, and the capability for each of a configuration's ``profiles`` (``gso``, ``plain``)."""
    return (FRAMING_NATIVE, *(_OF_PROFILE[profile] for profile in profiles))


def choose(offered: Collection[str], preferred: Sequence[str]) -> tuple[str, str]:
    """Choose a framing and a profile that both sides support.

    Args:
        offered: The enclave's capabilities.
        preferred: The relay's capabilities, best first.

    Returns:
        The framing and the profile.

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
        ConfigRejectedError: The choice was not offered, or is not one framing and one matching profile.
    """
    if not all(capability in offered for capability in chosen):
        raise ConfigRejectedError("the relay chose a capability that was not offered")
    if len(chosen) != 2 or not _fit(framing_of(chosen), profile_of(chosen)):
        raise ConfigRejectedError("the relay did not choose exactly one framing and one matching profile")


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
    # The compat framing has a 16-bit length, which is too short for a super-packet with its WireGuard header.
    return framing != FRAMING_COMPAT or profile == PROFILE_PLAIN


def _first(chosen: Sequence[str], kinds: Sequence[str]) -> str:
    for capability in chosen:
        if capability in kinds:
            return capability
    raise ConfigRejectedError("the chosen capabilities name no framing or no profile")
