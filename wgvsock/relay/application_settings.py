"""``[application]`` of ``relay.toml``: what the relay does with the reports of an enclave's application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from wgvsock.settings import Between
from wgvsock.telemetry.reports import REPORT_PORT


@dataclass(frozen=True, slots=True)
class ApplicationSettings:
    """The relay's ``[application]``. What the application may do is set in the enclave's own, measured configuration.

    Attributes:
        on_exit: What to do when the application ends for good. ``restart`` keeps serving the enclave, and launches it
            again if the relay launched it. ``stop`` stops serving it. The relay then exits with the application's exit
            status.
        report_port: Port of the agent's reports on the tunnel's addresses; 0 means that the relay does not read them.
        output: Whether to copy the application's output to the relay's standard output.
    """

    on_exit: Literal["restart", "stop"] = "restart"
    report_port: Annotated[int, Between(0, 65535)] = REPORT_PORT
    output: bool = True
