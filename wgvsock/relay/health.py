"""What probes ask: is the relay alive, may packets pass, and if not, why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from wgvsock.telemetry.endpoint import Answer, as_json


class State(Enum):
    """Where a relay is on its way to its enclave."""

    STARTING = "starting"
    PROVISIONING = "provisioning"
    HANDSHAKING = "handshaking"
    READY = "ready"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Readiness:
    """The conditions of readiness; all have to hold.

    Attributes:
        attested: The enclave passed every check and is still trusted.
        handshake: The tunnel is alive and its last handshake is young enough.
        rules: The packet filter lets packets pass.
    """

    attested: bool
    handshake: bool
    rules: bool

    @property
    def ready(self) -> bool:
        """Whether packets may pass."""
        return self.attested and self.handshake and self.rules

    def answer(self) -> Answer:
        """For ``GET /ready``: 200 or 503, with the conditions."""
        conditions = {"attested": self.attested, "handshake": self.handshake, "rules": self.rules}
        status = HTTPStatus.OK if self.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return as_json({"schema": "wgvsock/v1", "ready": self.ready, **conditions}, status)


def live() -> Answer:
    """For ``GET /live``: that the event loop answers is the proof."""
    return as_json({"schema": "wgvsock/v1", "live": True})
