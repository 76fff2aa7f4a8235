"""[application] of relay.toml, and where it applies."""

from __future__ import annotations

import pytest

from wgvsock import settings
from wgvsock.errors import ConfigurationError
from wgvsock.relay.application_settings import ApplicationSettings
from wgvsock.relay.config import RelayConfig

ATTESTATION = f'[[attestation.pcr_sets]]\npcr0 = "{"1" * 96}"\npcr1 = "{"2" * 96}"\npcr2 = "{"3" * 96}"\n'


def parse(text: str) -> RelayConfig:
    return settings.parse(RelayConfig, text)


def test_by_default_the_end_of_an_application_is_not_the_relays() -> None:
    (spec,) = parse(f'[enclave]\naddress = "vsock:16:51820"\n{ATTESTATION}').specs()
    assert spec.application == ApplicationSettings(on_exit="restart", report_port=51822, output=True)


def test_an_enclave_may_have_its_own_table() -> None:
    config = parse(
        f"""
        application.on_exit = "stop"
        {ATTESTATION}
        [[enclaves]]
        name = "a"
        address = "vsock:16:51820"
        [[enclaves]]
        name = "b"
        address = "vsock:17:51820"
        application.output = false
        """
    )
    assert [(spec.application.on_exit, spec.application.output) for spec in config.specs()] == [
        ("stop", True),
        ("restart", False),
    ]


@pytest.mark.parametrize("line", ['on_exit = "never"', "report_port = 65536", "output = 1"])
def test_what_is_refused(line: str) -> None:
    with pytest.raises(ConfigurationError):
        settings.parse(ApplicationSettings, line)


@pytest.mark.parametrize(("port", "refused"), [(51822, True), (51823, False)])
def test_no_published_port_leads_to_the_reports(port: int, refused: bool) -> None:
    text = (
        f'[enclave]\naddress = "vsock:16:51820"\n{ATTESTATION}'
        f'[[nat.publish]]\nprotocol = "tcp"\nport = 8080\nenclave_port = {port}\n'
    )
    if not refused:
        parse(text)
        return
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    assert "the agent itself listens" in caught.value.why
