"""Settings that are valid, but may not do what the operator intended."""

from __future__ import annotations

from dataclasses import dataclass

from wgvsock.settings.errors import KeyPath


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting to reconsider. It does not keep the service from starting.

    Attributes:
        key: Its place in the file.
        what: What does not have the expected effect, or has a wider one.
        why: What was found to cause it.
        fix: What the operator can do about it.
    """

    key: KeyPath
    what: str
    why: str
    fix: str
