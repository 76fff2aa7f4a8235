"""The laboratory's branch of the exception tree (`wgvsock.errors`): codes WGV-E090 to WGV-E099."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wgvsock.errors import WgvsockError


class LabError(WgvsockError):
    """A step of the laboratory failed."""

    code = "WGV-E090"


class LabUnavailableError(LabError):
    """This machine cannot run the requested backend."""

    code = "WGV-E091"
    exit_code = 7


class LabTimeoutError(LabError):
    """An expected event did not happen within its deadline."""

    code = "WGV-E092"
    exit_code = 6


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why this machine cannot run a backend: something is missing, or exists but may not be used."""

    kind: Literal["missing", "forbidden"]
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} ({self.fix})"
