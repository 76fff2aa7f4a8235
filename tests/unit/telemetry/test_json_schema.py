"""The JSON output of the commands conforms to the published schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.statuses import enclave, refused_enclave, relay
from tests.unit.cli.test_top import FIRST, SECOND
from tests.unit.service_pair import ServicePair
from wgvsock.cli import main
from wgvsock.cli.top import as_json, compare
from wgvsock.relay.status import relay_status
from wgvsock.telemetry.json_schema import NETCHECK, STATUS, TOP, Schema
from wgvsock.testing import without_waiting

TYPES: dict[str, Any] = {
    "string": str, "number": int | float, "integer": int, "boolean": bool, "array": list, "object": dict,
    "null": type(None),
}  # fmt: skip


def faults(schema: Schema, value: Any, where: str = "$") -> list[str]:
    """Return where a value violates a schema: the part of draft 2020-12 that these schemas use."""
    if "anyOf" in schema:
        found = [faults(each, value, where) for each in schema["anyOf"]]
        return [] if [] in found else min(found, key=len)
    if "const" in schema:
        return [] if value == schema["const"] else [f"{where}: {value!r} is not {schema['const']!r}"]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{where}: {value!r} is not one of {schema['enum']}"]
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{where}: {value!r} is no {kind}"]
    if kind == "array":
        return [
            fault for index, item in enumerate(value) for fault in faults(schema["items"], item, f"{where}[{index}]")
        ]
    if kind != "object":
        return []
    missing = [f"{where}: {key} is missing" for key in schema.get("required", ()) if key not in value]
    known = schema.get("properties", {})
    rest = schema.get("additionalProperties", {})
    inner = {key: known.get(key, rest) for key in value}
    return missing + [
        fault for key, each in inner.items() if each for fault in faults(each, value[key], f"{where}.{key}")
    ]


@without_waiting
async def test_a_relay_s_status_at_each_step_of_its_life(tmp_path: Path) -> None:
    pair = ServicePair(tmp_path)
    pair.set_faults(pcrs={0: bytes([5]) * 48})
    pair.start_relay()
    assert faults(STATUS, relay_status(pair.relay.snapshot())) == []
    pair.start_enclave()
    await pair.until(lambda: pair.is_set_up and pair.attendant.last_error, "the refusal")
    pair.relay.reload()
    assert faults(STATUS, relay_status(pair.relay.snapshot())) == []
    pair.set_faults()
    await pair.until(pair.is_ready, "readiness")
    status = json.loads(json.dumps(relay_status(pair.relay.snapshot())))
    assert faults(STATUS, status) == []
    await pair.down()


def test_the_tests_own_snapshots_and_rates() -> None:
    assert faults(TOP, {"schema": "wgvsock/v1", **as_json(compare(FIRST, SECOND))}) == []
    for told in (relay(), relay(refused_enclave()), relay(enclave())):
        assert faults(STATUS["properties"]["ready"], told["ready"]) == []
        assert faults(STATUS["properties"]["role"], told["role"]) == []


def test_what_breaks_a_schema_is_found() -> None:
    layer = {"layer": "names", "state": "ok", "what": "", "fix": ""}
    answer = {"schema": "wgvsock/v1", "ok": True, "broken": None, "layers": [layer]}
    assert faults(NETCHECK, answer) == []
    assert faults(NETCHECK, {**answer, "layers": [{**layer, "state": "fine"}]})
    assert faults(NETCHECK, {**answer, "ok": 1})
    assert faults(NETCHECK, {**answer, "schema": "wgvsock/v2"})
    assert faults(NETCHECK, {"schema": "wgvsock/v1"})
    assert faults(TOP, {**answer})


@pytest.mark.parametrize(("command", "schema"), [("status", STATUS), ("netcheck", NETCHECK), ("top", TOP)])
def test_each_command_prints_its_schema(command: str, schema: Schema, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--schema"])
    assert json.loads(capsys.readouterr().out) == schema
