"""The template is complete: only rarely used keys of the schema are missing in it."""

from __future__ import annotations

import dataclasses

from wgvsock.relay.sections import AttestationSettings, InterfaceSettings, NatSettings, ProvisioningSettings
from wgvsock.relay.template import TEMPLATE

RARE = {
    "queue_length",
    "busy_poll_us",
    "profiles",
    "max_future",
    "module_id",
    "role_arn",
    "grace",
    "exchange_timeout",
    "handshake_timeout",
    "masquerade",
    "pcr_sets",
    "publish",
}


def test_every_usual_key_is_shown() -> None:
    for schema in (InterfaceSettings, AttestationSettings, ProvisioningSettings, NatSettings):
        for key in {field.name for field in dataclasses.fields(schema)} - RARE:
            assert f"{key} = " in TEMPLATE, key


def test_it_is_a_text_for_a_terminal() -> None:
    assert max(map(len, TEMPLATE.splitlines())) <= 120
    assert TEMPLATE.endswith("\n")
