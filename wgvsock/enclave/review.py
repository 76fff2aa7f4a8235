"""Settings of an enclave that may not do what the image's author expects. See `wgvsock.relay.review`."""

from __future__ import annotations

from wgvsock.egress.review import review
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.settings import Advice


def advise(config: EnclaveConfig) -> tuple[Advice, ...]:
    """List the settings to review."""
    policy = config.egress_policy()
    return () if policy is None else tuple(finding.advice(("egress",)) for finding in review(policy))
