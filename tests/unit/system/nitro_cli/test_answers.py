"""The tool's answers are accepted within bounds."""

from __future__ import annotations

import json

import pytest

from tests.unit.system.nitro_cli.scripted_tool import DESCRIBED, REQUEST, RUNNING, Tool
from wgvsock.system.nitro_cli import NitroCliError


@pytest.mark.asyncio
async def test_measurements_are_bytes_by_number(tool: Tool) -> None:
    measured = {"HashAlgorithm": "Sha384 { ... }", "PCR0": "00" * 48, "PCR1": "11" * 48, "PCR2": "22" * 48}
    tool.answers("describe-eif", {"EifVersion": 4, "Measurements": measured})
    assert await tool.cli().measurements("/images/app.eif") == {0: bytes(48), 1: b"\x11" * 48, 2: b"\x22" * 48}


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        ("describe-eif", {"Measurements": {"PCR0": "not hex"}}),
        ("describe-eif", {"Measurements": {"PCR0": "00"}}),
        ("describe-eif", {"Measurements": {"PCR0": 5}}),
        ("describe-eif", {"Measurements": {"PCR32": "00" * 48}}),
        ("describe-eif", {"Measurements": {"PCR": "00" * 48}}),
        ("describe-eif", {"Measurements": {}}),
        ("describe-eif", {}),
        ("describe-eif", []),
        ("describe-enclaves", {}),
        ("describe-enclaves", [{"EnclaveID": "i-1-enc1"}]),
        ("describe-enclaves", ["text"]),
        ("describe-enclaves", "no JSON at all"),
        ("describe-enclaves", "[" + " " * 200_000),
        ("describe-enclaves", "\n" * 250_000),
        ("describe-enclaves", "[" * 250_000),
        ("describe-enclaves", '[{"a": ' * 30_000),
        ("describe-enclaves", "[NaN]"),
        ("describe-enclaves", "[" + "1" * 5000 + "]"),
    ],
)
@pytest.mark.asyncio
async def test_an_answer_of_another_shape_is_refused(tool: Tool, verb: str, answer: object) -> None:
    tool.answers(verb, answer)
    cli = tool.cli()
    with pytest.raises(NitroCliError, match="cannot"):
        await (cli.measurements("x") if verb == "describe-eif" else cli.describe_enclaves())


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("EnclaveCID", 2**70, "from 4 to 4294967294"),
        ("EnclaveCID", 2**32 + 16, "from 4 to 4294967294"),
        ("EnclaveCID", -5, "from 4 to 4294967294"),
        ("EnclaveCID", 0xFFFFFFFF, "from 4 to 4294967294"),
        ("EnclaveCID", 3, "from 4 to 4294967294"),  # the parent's own
        ("EnclaveCID", "16", "EnclaveCID is not a whole number"),
        ("EnclaveCID", 16.0, "EnclaveCID is not a whole number"),
        ("EnclaveCID", True, "EnclaveCID is not a whole number"),
        ("EnclaveCID", None, "EnclaveCID is not a whole number"),
        ("EnclaveCID", float("inf"), "does not have the form of version 1.x"),
        ("EnclaveCID", float("nan"), "does not have the form of version 1.x"),
        ("ProcessID", -1, "ProcessID is not a whole number from 0 to 4194304"),
        ("ProcessID", 2**32, "ProcessID"),
        ("ProcessID", [], "ProcessID"),
        ("NumberOfCPUs", 1 << 20, "NumberOfCPUs"),
        ("MemoryMiB", 1e300, "MemoryMiB"),
        ("EnclaveID", "--all", "EnclaveID"),
        ("EnclaveID", "i-05f6ed443a0123456-enc1\n", "EnclaveID"),
        ("EnclaveID", "i-05f6ed443a0123456-enc" + "1" * 17, "EnclaveID"),
        ("EnclaveID", None, "EnclaveID is not a text"),
        ("EnclaveName", {}, "EnclaveName is not a text"),
        ("EnclaveName", "a" * 256, "EnclaveName is not a text"),
        ("State", 1, "State is not a text"),
        ("Flags", True, "Flags is not a text"),
    ],
)
@pytest.mark.asyncio
async def test_every_field_is_checked(tool: Tool, key: str, value: object, why: str) -> None:
    tool.answers("describe-enclaves", [{**DESCRIBED, key: value}])
    tool.answers("run-enclave", {**RUNNING, key: value})
    for call in (tool.cli().describe_enclaves(), tool.cli().run_enclave(REQUEST)):
        with pytest.raises(NitroCliError) as caught:
            await call
        assert why in caught.value.why
        assert "--all" not in str(caught.value)  # nothing of it is repeated


@pytest.mark.asyncio
async def test_what_is_odd_about_another_s_enclave_is_nothing_to_us(tool: Tool) -> None:
    odd = {**DESCRIBED, "EnclaveName": "other", "EnclaveCID": -5}
    tool.answers("describe-enclaves", [odd, DESCRIBED, {"EnclaveName": []}])
    listing = await tool.cli().describe_enclaves("wgvsock")
    assert [one.cid for one in listing.complete()] == [10]
    with pytest.raises(NitroCliError):
        await tool.cli().describe_enclaves()


@pytest.mark.asyncio
async def test_an_answer_stands_behind_prose_that_has_brackets_too(tool: Tool) -> None:
    prose = "Started enclave with enclave-cid: 10, memory: 1600 MiB, cpu-ids: [1, 3]\n[ E39 ] is no answer\n"
    tool.answers("describe-enclaves", prose + json.dumps([DESCRIBED], indent=2))
    assert len((await tool.cli().describe_enclaves()).complete()) == 1
