"""The template is only comments: every key has a default."""

from __future__ import annotations

import dataclasses

from wgvsock import settings
from wgvsock.enclave.application.settings import ApplicationSettings
from wgvsock.enclave.clock import ClockSettings
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.enclave.documents.settings import AttestationEndpointSettings
from wgvsock.enclave.template import TEMPLATE

TABLES = {"egress"}
RARE = {"name", "runtime_directory", "log_level", "queue_length", "busy_poll_us", "profiles", "provisioning_listen"}
RARE |= {"output_limit", "report_port", "ready_interval", "ready_timeout", "socket"}
EXAMPLES = ("pin_public_key", "ready", "user", "env", "working_directory", "tls_certificate")
"""Shown with a value that is not a default: there is none."""


def test_it_means_the_defaults() -> None:
    assert settings.parse(EnclaveConfig, TEMPLATE) == EnclaveConfig()


def test_every_usual_key_is_shown_with_its_default() -> None:
    keys = {
        field.name
        for field in (
            *dataclasses.fields(EnclaveConfig),
            *dataclasses.fields(ApplicationSettings),
            *dataclasses.fields(AttestationEndpointSettings),
            *dataclasses.fields(ClockSettings),
        )
    }
    for name in keys - RARE:
        assert f"#{name} = " in TEMPLATE or f"#[{name}]" in TEMPLATE, name
    lines = [line[1:] for line in TEMPLATE.splitlines() if line.startswith("#") and not line.startswith(("# ", "#:"))]
    shown = "\n".join(line for line in lines if not line.startswith(EXAMPLES))
    config = settings.parse(EnclaveConfig, shown)
    assert dataclasses.replace(config, egress=None) == EnclaveConfig()
    assert config.egress is not None  # an example: there is none by default
