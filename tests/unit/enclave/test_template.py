"""The template is all comments: every key has a default."""

from __future__ import annotations

import dataclasses

from wgvsock import settings
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.enclave.template import TEMPLATE

RARE = {"name", "runtime_directory", "log_level", "queue_length", "profiles", "provisioning_listen"}


def test_it_means_the_defaults() -> None:
    assert settings.parse(EnclaveConfig, TEMPLATE) == EnclaveConfig()


def test_every_usual_key_is_shown_with_its_default() -> None:
    for field in dataclasses.fields(EnclaveConfig):
        if field.name not in RARE:
            assert f"#{field.name} = " in TEMPLATE, field.name
    lines = [line[1:] for line in TEMPLATE.splitlines() if line.startswith("#") and not line.startswith("# ")]
    shown = "\n".join(line for line in lines if not line.startswith("pin_public_key"))
    assert settings.parse(EnclaveConfig, shown) == EnclaveConfig()
