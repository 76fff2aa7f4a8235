"""What a valid enclave.toml may not mean as the image's author thinks."""

from __future__ import annotations

from wgvsock import settings
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.enclave.review import advise


def test_without_a_policy_there_is_nothing_to_say() -> None:
    assert advise(EnclaveConfig()) == ()


def test_rules_that_do_nothing() -> None:
    config = settings.parse(
        EnclaveConfig, '[egress]\ndefault = "deny"\nallow = [{network = "10.0.0.0/8"}, {network = "10.1.0.0/16"}]\n'
    )
    (found,) = advise(config)
    assert found.key == ("egress", "allow", 1)
