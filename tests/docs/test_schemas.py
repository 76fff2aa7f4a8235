"""The configurations' schemas, checked by an independent validator: they accept what `config check` accepts, and refuse
what it reports as an unknown key or a wrong type.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from wgvsock.enclave import template as enclave
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.relay import template as relay
from wgvsock.relay.config import RelayConfig
from wgvsock.settings import json_schema

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).resolve().parents[2]
KINDS: dict[str, tuple[type[Any], str]] = {
    "relay": (RelayConfig, relay.TEMPLATE),
    "enclave": (EnclaveConfig, enclave.TEMPLATE),
}
FILES = sorted((*ROOT.glob("deploy/**/relay.toml"), *ROOT.glob("examples/**/*.toml")))


def validator(role: str) -> Any:
    schema = json_schema(KINDS[role][0], role)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("role", KINDS)
def test_the_templates(role: str) -> None:
    template = KINDS[role][1]
    validator(role).validate(tomllib.loads(template))
    every = "\n".join(line.removeprefix("#") for line in template.splitlines() if not line.startswith(("# ", "#:")))
    validator(role).validate(tomllib.loads(every))


def test_the_files_of_the_repository() -> None:
    assert len(FILES) >= 5
    for path in FILES:
        validator(path.stem).validate(tomllib.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("role", "text"),
    [
        ("relay", "nmae = 'x'"),
        ("relay", "name = 1"),
        ("relay", "[nat]\npublish = [{protocol = 'sctp', port = 1}]"),
        ("relay", "[nat]\npublish = [{protocol = 'tcp', port = 65536}]"),
        ("relay", "[attestation]\nmax_age = 1.0"),
        ("relay", "[egress]\nallow = [{ports = ['443']}]"),
        ("enclave", "[application]\nonexit = 'x'"),
        ("enclave", "key_pcr = 99"),
    ],
)
def test_what_is_wrong(role: str, text: str) -> None:
    assert not validator(role).is_valid(tomllib.loads(text))
