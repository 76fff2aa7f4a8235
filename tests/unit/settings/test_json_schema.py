"""The schema for editors agrees with the reader."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from wgvsock.addresses import IpAddress, IpInterface, StreamAddress, parse_stream_address
from wgvsock.enclave.config import EnclaveConfig
from wgvsock.relay.config import RelayConfig
from wgvsock.settings import Between, json_schema
from wgvsock.settings.json_schema import DIALECT

SERVER = ipaddress.IPv4Address("10.0.0.1")


@dataclass(frozen=True)
class Inner:
    """``[inner]``: a table."""

    needed: str
    addresses: tuple[IpInterface, ...] = ()


@dataclass(frozen=True)
class Base:
    """Its base.

    Attributes:
        level: How much
            to `log`.
    """

    level: Literal["debug", "info"] = "info"


@dataclass(frozen=True)
class File(Base):
    """A file.

    Attributes:
        port: Where.
    """

    port: Annotated[int, Between(1, 65535)] | None = None
    ratio: float = 0.5
    on: bool = False
    server: IpAddress | None = SERVER
    listen: StreamAddress = field(default_factory=lambda: parse_stream_address("tcp:127.0.0.1:1"))
    peer: StreamAddress | None = None
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()


SCHEMA = json_schema(File, "a file")
KEYS: dict[str, Any] = SCHEMA["properties"]


def test_the_whole() -> None:
    assert SCHEMA["$schema"] == DIALECT
    assert SCHEMA["title"] == "a file"
    assert SCHEMA["description"] == "A file."
    assert SCHEMA["additionalProperties"] is False
    assert "required" not in SCHEMA
    assert list(KEYS) == ["level", "port", "ratio", "on", "server", "listen", "peer", "inner", "many"]


def test_scalars_with_bounds_choices_and_defaults() -> None:
    assert KEYS["port"] == {"description": "Where.", "type": "integer", "minimum": 1, "maximum": 65535}
    assert KEYS["ratio"] == {"type": "number", "default": 0.5}
    assert KEYS["on"] == {"type": "boolean", "default": False}
    # The words of the class that this one extends, on one line and without markup.
    assert KEYS["level"] == {"description": "How much to log.", "enum": ["debug", "info"], "default": "info"}


def test_texts_with_a_form() -> None:
    assert KEYS["server"]["examples"] == ["10.0.0.1"]
    assert KEYS["server"]["default"] == "10.0.0.1"
    stream = {"type": "string", "description": "a stream address", "examples": ["vsock:16:51820"]}
    assert KEYS["listen"] == KEYS["peer"] == stream


def test_tables_and_arrays_of_tables() -> None:
    inner = KEYS["inner"]
    assert (inner["type"], inner["description"], inner["required"]) == ("object", "a table.", ["needed"])
    assert KEYS["many"] == {"type": "array", "items": inner}
    assert inner["properties"]["addresses"]["items"]["examples"] == ["10.73.0.2/24"]


def described(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, bool]]:
    """Each key, and whether it or its table has a description."""
    for name, entry in schema.get("properties", {}).items():
        yield f"{path}{name}", bool(entry.get("description") or schema.get("description"))
        yield from described(entry, f"{path}{name}.")
        yield from described(entry.get("items", {}), f"{path}{name}.")


@pytest.mark.parametrize("kind", [RelayConfig, EnclaveConfig])
def test_every_key_of_ours_has_words(kind: type[Any]) -> None:
    found = list(described(json_schema(kind, "ours")))
    assert len(found) > 40
    assert [key for key, has_words in found if not has_words] == []


def test_a_path_that_a_reader_would_look_for() -> None:
    keys = json_schema(RelayConfig, "relay.toml")["properties"]
    allow = keys["egress"]["properties"]["allow"]["items"]["properties"]
    assert allow["protocol"]["enum"] == ["tcp", "udp", "icmp", "any"]
    assert keys["attestation"]["properties"]["pcr_sets"]["items"]["required"] == ["pcr0", "pcr1", "pcr2"]
