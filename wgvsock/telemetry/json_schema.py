"""JSON Schemas (draft 2020-12) of what ``status``, ``netcheck`` and ``top`` print with ``--json``, for programs.

A new version may add keys, so readers have to ignore unknown ones. The keys listed here stay. A value of null means
that it is unknown.
"""

from __future__ import annotations

from typing import Any, Final

from wgvsock.telemetry.schema import SCHEMA

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
NUMBER: Final[Schema] = {"type": "number"}
WHOLE: Final[Schema] = {"type": "integer"}
FLAG: Final[Schema] = {"type": "boolean"}
TEXTS: Final[Schema] = {"type": "array", "items": TEXT}
COUNTS: Final[Schema] = {"type": "object", "additionalProperties": NUMBER}


def _table(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _document(title: str, **properties: Schema) -> Schema:
    named = {"schema": {"const": SCHEMA}, **properties}
    return {"$schema": _DIALECT, "title": title, **_table(**named)}


_ERROR: Final = _table(code=TEXT, what=TEXT, why=TEXT, fix=TEXT)

_ORDER: Final = _table(
    order=WHOLE,
    kind={"enum": ["reload", "reattest"]},
    time=TEXT,
    done=FLAG,
    ok=_or_null(FLAG),
    error=_or_null(_ERROR),
    enclaves={"type": "object", "additionalProperties": _table(done=FLAG, error=_or_null(_ERROR))},
    replacing=TEXTS,
)

_REFUSAL: Final = _table(
    time=TEXT,
    check=TEXT,
    why=TEXT,
    fix=TEXT,
    module_id=_or_null(TEXT),
    set=TEXT,
    sets=WHOLE,
    registers=_list(_table(pcr=TEXT, measured=_or_null(TEXT), allowed=TEXT, equal=FLAG)),
    document=_or_null(TEXT),
)

_PEER: Final = _table(
    public_key=TEXT,
    endpoint=TEXT,
    handshake_age_seconds=_or_null(NUMBER),
    rx_bytes=WHOLE,
    tx_bytes=WHOLE,
    rx_packets=WHOLE,
    tx_packets=WHOLE,
    profile=TEXT,
)

_ENCLAVE: Final = _table(
    name=TEXT,
    state={"enum": ["starting", "provisioning", "handshaking", "ready", "superseded", "failed", "stopping"]},
    ready=FLAG,
    conditions={"type": "object", "additionalProperties": _or_null(FLAG)},
    address=TEXT,
    attestation=_or_null(
        _table(
            module_id=TEXT,
            timestamp=TEXT,
            pcrs={"type": "object", "additionalProperties": TEXT},
            public_key=TEXT,
            policy=TEXT,
            age_seconds=NUMBER,
            exchange_ms=NUMBER,
            handshake_ms=NUMBER,
        )
    ),
    root_is_aws=FLAG,
    debug_allowed=FLAG,
    provisioning=_table(
        attempts=COUNTS, next_in_seconds=NUMBER, trusted_for_seconds=NUMBER, error=_or_null(_ERROR)
    ),
    refusal=_or_null(_REFUSAL),
    wireguard=_or_null(_table(interface=TEXT, public_key=_or_null(TEXT), peers=_list(_PEER))),
    path=_or_null(
        _table(
            alive=_or_null(FLAG),
            rtt_ms={"type": "object", "additionalProperties": _or_null(NUMBER)},
            sent=WHOLE,
            lost=WHOLE,
        )
    ),
    clock_offset_seconds=_or_null(NUMBER),
    processor=_or_null(
        _table(
            processors=WHOLE,
            clock_seconds=NUMBER,
            busy_seconds=NUMBER,
            agent_seconds=NUMBER,
            percent=_or_null(NUMBER),
            agent_percent=_or_null(NUMBER),
        )
    ),
    application=_or_null(
        _table(phase=TEXT, running=FLAG, starts=WHOLE, exit_status=_or_null(WHOLE), ready=_or_null(FLAG), why=TEXT)
    ),
    nat=_or_null(
        _table(
            open=FLAG,
            backend=TEXT,
            owner=TEXT,
            uplink=TEXT,
            mtu=WHOLE,
            repairs=COUNTS,
            deleted_flows=COUNTS,
            contested=TEXTS,
            problem=_or_null(_ERROR),
            published=TEXTS,
        )
    ),
    egress=_or_null(
        _table(default={"enum": ["allow", "deny"]}, flows=COUNTS, pins=WHOLE, names_refused=WHOLE,
               addresses_withheld=WHOLE)
    ),
    dns=_or_null(_table(listen=TEXTS, servers=TEXTS, silent=TEXTS, in_flight=WHOLE, queries=COUNTS, upstream=COUNTS)),
    counters=_or_null(_table(dropped=COUNTS, acknowledgements_superseded=WHOLE, offloads=FLAG)),
)  # fmt: skip

STATUS: Final = _document(
    "wgvsock status --json, of a relay",
    role={"const": "relay"},
    name=TEXT,
    pid=WHOLE,
    state=TEXT,
    ready=FLAG,
    processor_seconds=NUMBER,
    monotonic_seconds=NUMBER,
    reload=_or_null(_ORDER),
    enclaves=_list(_ENCLAVE),
)

NETCHECK: Final = _document(
    "wgvsock netcheck --json",
    ok=FLAG,
    broken=_or_null(TEXT),
    layers=_list(_table(layer=TEXT, state={"enum": ["ok", "warning", "broken", "not asked"]}, what=TEXT, fix=TEXT)),
)

TOP: Final = _document(
    "wgvsock top --json, each line",
    seconds=NUMBER,
    processor_percent=_or_null(NUMBER),
    enclaves=_list(
        _table(
            name=TEXT,
            ready=FLAG,
            rx_bytes_per_second=NUMBER,
            tx_bytes_per_second=NUMBER,
            rx_packets_per_second=NUMBER,
            tx_packets_per_second=NUMBER,
            dropped_per_second=COUNTS,
            rtt_ms=_or_null(NUMBER),
            processor_percent=_or_null(NUMBER),
            agent_processor_percent=_or_null(NUMBER),
        )
    ),
)
