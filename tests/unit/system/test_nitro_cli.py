"""The tool is a shell script that prints what the real one printed, and notes how it was called."""

from __future__ import annotations

import asyncio
import fcntl
import json
from pathlib import Path

import pytest

from wgvsock.addresses import Cid
from wgvsock.system.nitro_cli import FIRST_RETRY, RUN_ATTEMPTS, NitroCli, NitroCliError, RunRequest, translate

RUNNING = {
    "EnclaveName": "wgvsock",
    "EnclaveID": "i-05f6ed443aEXAMPLE-enc173dfe3eEXAMPLE",
    "ProcessID": 7077,
    "EnclaveCID": 10,
    "NumberOfCPUs": 2,
    "CPUIDs": [1, 3],
    "MemoryMiB": 1600,
}
DESCRIBED = {**RUNNING, "State": "RUNNING", "Flags": "DEBUG_MODE"}
REQUEST = RunRequest("/images/app.eif", 2, 1600)

# As the tool's issues 232 and 516 show it, shortened.
HUGE_PAGES = """Start allocating memory...
[ E35 ] EIF file parsing error. Such error appears when attempting to fill a memory region.

For more details, please visit http://enclaves.aws.amazon.com/nitro-cli/errors#E35
Failed connections: 1
[ E39 ] Enclave process connection failure. Such error appears when the enclave manager fails to connect.
"""
COLLISION = """Start allocating memory...
[ E36 ] Enclave boot failure. Such error appears when attempting to receive the `ready` signal.
Failed connections: 1
[ E39 ] Enclave process connection failure.
"""


class Tool:
    """A stand-in executable: answers are files, so that a call can change what the next one sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "nitro-cli"
        self.sleeps: list[float] = []
        self.path.write_text(
            f'#!/bin/sh\ncd "{folder}"\necho "$@" >> calls\n'
            'cat "$1.stdout" 2>/dev/null\ncat "$1.stderr" >&2 2>/dev/null\nexit $(cat "$1.code" || echo 0)\n'
        )
        self.path.chmod(0o755)

    def answers(self, verb: str, stdout: object = None, *, stderr: str = "", code: int = 0) -> None:
        text = stdout if isinstance(stdout, str) else json.dumps(stdout)
        (self.folder / f"{verb}.stdout").write_text(text)
        (self.folder / f"{verb}.stderr").write_text(stderr)
        (self.folder / f"{verb}.code").write_text(str(code))

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def alive(self) -> bool:
        """Whether the process whose identifier the script has written still runs."""
        pid = self.folder / "pid"
        return pid.exists() and Path(f"/proc/{pid.read_text().strip()}").exists()

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await asyncio.sleep(0)

    def cli(self) -> NitroCli:
        return NitroCli(str(self.path), lock_path=str(self.folder / "lock"), sleep=self.sleep)


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path)


@pytest.mark.asyncio
async def test_a_launch_is_asked_for_in_the_tools_own_flags(tool: Tool) -> None:
    tool.answers("run-enclave", RUNNING, stderr="Start allocating memory...\n")
    request = RunRequest("/images/app.eif", 2, 1600, cid=Cid(10), name="wgvsock", debug=True)
    enclave = await tool.cli().run_enclave(request)
    flags = (
        "--eif-path /images/app.eif --cpu-count 2 --memory 1600 --enclave-cid 10 --enclave-name wgvsock --debug-mode"
    )
    assert tool.calls == [f"run-enclave {flags}"]
    assert (enclave.enclave_id, enclave.cid, enclave.name) == (RUNNING["EnclaveID"], 10, "wgvsock")
    assert enclave.running
    assert enclave.debug
    assert (enclave.process_id, enclave.cpu_count, enclave.memory_mib) == (7077, 2, 1600)


@pytest.mark.asyncio
async def test_optional_flags_are_left_out(tool: Tool) -> None:
    tool.answers("run-enclave", RUNNING)
    enclave = await tool.cli().run_enclave(REQUEST)
    assert tool.calls == ["run-enclave --eif-path /images/app.eif --cpu-count 2 --memory 1600"]
    assert not enclave.debug


@pytest.mark.asyncio
async def test_a_collision_with_another_launch_is_tried_again_with_growing_pauses(tool: Tool) -> None:
    tool.answers("run-enclave", stderr=COLLISION, code=39)
    with pytest.raises(NitroCliError) as caught:
        await tool.cli().run_enclave(REQUEST)
    assert len(tool.calls) == RUN_ATTEMPTS
    assert tool.sleeps == [FIRST_RETRY * factor for factor in (1, 2, 4, 8)]
    assert caught.value.codes == ("E36", "E39")
    assert "did not boot" in caught.value.why


@pytest.mark.asyncio
async def test_a_collision_that_passes_ends_in_a_running_enclave(tool: Tool) -> None:
    tool.answers("run-enclave", stderr=COLLISION, code=39)

    async def other_launch_ends(seconds: float) -> None:
        await tool.sleep(seconds)
        tool.answers("run-enclave", RUNNING)

    cli = NitroCli(str(tool.path), lock_path=str(tool.folder / "lock"), sleep=other_launch_ends)
    assert (await cli.run_enclave(REQUEST)).cid == 10
    assert len(tool.calls) == 2


@pytest.mark.asyncio
async def test_missing_huge_pages_are_named_and_not_retried(tool: Tool) -> None:
    tool.answers("run-enclave", stderr=HUGE_PAGES, code=39)
    with pytest.raises(NitroCliError) as caught:
        await tool.cli().run_enclave(REQUEST)
    assert len(tool.calls) == 1
    assert caught.value.error_code == "E35"
    assert "huge pages" in caught.value.why
    assert "memory_mib" in caught.value.fix
    assert caught.value.exit_code == 8


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("E19", "/dev/nitro_enclaves"),
        ("E22", "CPU pool"),
        ("E26", "image needs"),
        ("E27", "huge pages"),
        ("E58", "name"),
    ],
)
def test_codes_are_translated(code: str, word: str) -> None:
    error = translate("launch", 39, f"[ {code} ] Prose.\nFailed connections: 1\n[ E39 ] More prose.\n")
    assert error.error_code == code
    assert word in error.why


def test_an_unknown_failure_keeps_its_exit_code() -> None:
    error = translate("launch", 101, "thread 'main' panicked")
    assert error.error_code == ""
    assert "101" in error.why


@pytest.mark.asyncio
async def test_a_launch_waits_for_the_lock_of_another_process(tool: Tool) -> None:
    tool.answers("run-enclave", RUNNING)
    with (tool.folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        async def look(seconds: float) -> None:
            await tool.sleep(seconds)
            assert not (tool.folder / "calls").exists()
            if len(tool.sleeps) == 3:
                fcntl.flock(held, fcntl.LOCK_UN)

        await NitroCli(str(tool.path), lock_path=str(tool.folder / "lock"), sleep=look).run_enclave(REQUEST)
    assert len(tool.calls) == 1
    assert len(tool.sleeps) == 3


@pytest.mark.asyncio
async def test_a_lock_that_cannot_be_made_is_an_error(tool: Tool) -> None:
    (tool.folder / "file").touch()
    with pytest.raises(NitroCliError, match="lock"):
        await NitroCli(str(tool.path), lock_path=str(tool.folder / "file/lock")).run_enclave(REQUEST)


@pytest.mark.asyncio
async def test_describe_lists_every_enclave(tool: Tool) -> None:
    tool.answers("describe-enclaves", [DESCRIBED, {**DESCRIBED, "State": "TERMINATING", "Flags": "NONE"}])
    first, second = await tool.cli().describe_enclaves()
    assert (first.running, first.debug) == (True, True)
    assert (second.running, second.debug) == (False, False)


@pytest.mark.asyncio
async def test_terminate_reads_json_behind_prose(tool: Tool) -> None:
    answer = {"EnclaveID": RUNNING["EnclaveID"], "Terminated": True}
    tool.answers("terminate-enclave", "Successfully terminated enclave i-05.\n" + json.dumps(answer))
    await tool.cli().terminate_enclave("i-05f6ed443aEXAMPLE-enc173dfe3eEXAMPLE")
    assert tool.calls == ["terminate-enclave --enclave-id i-05f6ed443aEXAMPLE-enc173dfe3eEXAMPLE"]


@pytest.mark.asyncio
async def test_an_enclave_that_is_already_gone_counts_as_terminated(tool: Tool) -> None:
    tool.answers("terminate-enclave", stderr="[ E11 ] Socket error.", code=11)
    tool.answers("describe-enclaves", [])
    await tool.cli().terminate_enclave("i-05-enc1")


@pytest.mark.asyncio
async def test_an_enclave_that_stays_is_an_error(tool: Tool) -> None:
    tool.answers("terminate-enclave", stderr="[ E11 ] Socket error.", code=11)
    tool.answers("describe-enclaves", [DESCRIBED])
    with pytest.raises(NitroCliError, match="terminate"):
        await tool.cli().terminate_enclave(DESCRIBED["EnclaveID"])  # type: ignore[arg-type]
    tool.answers("terminate-enclave", {"EnclaveID": "i-05-enc1", "Terminated": False})
    with pytest.raises(NitroCliError, match="not terminated"):
        await tool.cli().terminate_enclave("i-05-enc1")


@pytest.mark.asyncio
async def test_measurements_are_bytes_by_number(tool: Tool) -> None:
    measured = {"HashAlgorithm": "Sha384 { ... }", "PCR0": "00" * 48, "PCR1": "11" * 48, "PCR2": "22" * 48}
    tool.answers("describe-eif", {"EifVersion": 4, "Measurements": measured})
    assert await tool.cli().measurements("/images/app.eif") == {0: bytes(48), 1: b"\x11" * 48, 2: b"\x22" * 48}


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        ("describe-eif", {"Measurements": {"PCR0": "not hex"}}),
        ("describe-eif", {}),
        ("describe-eif", []),
        ("describe-enclaves", {}),
        ("describe-enclaves", [{"EnclaveID": "i-1-enc1"}]),
        ("describe-enclaves", ["text"]),
        ("describe-enclaves", "no JSON at all"),
        ("describe-enclaves", "[" + " " * (1 << 20)),
    ],
)
@pytest.mark.asyncio
async def test_an_answer_of_another_shape_is_refused(tool: Tool, verb: str, answer: object) -> None:
    tool.answers(verb, answer)
    cli = tool.cli()
    with pytest.raises(NitroCliError, match="cannot"):
        await (cli.measurements("x") if verb == "describe-eif" else cli.describe_enclaves())


@pytest.mark.asyncio
async def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    with pytest.raises(NitroCliError, match="No such file") as caught:
        await NitroCli(str(tmp_path / "nowhere")).describe_enclaves()
    assert caught.value.codes == ()


@pytest.mark.asyncio
async def test_a_tool_that_hangs_is_killed(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.path.write_text(f"#!/bin/sh\necho $$ > {tool.folder}/pid\nexec sleep 60\n")
    monkeypatch.setattr("wgvsock.system.nitro_cli.QUERY_DEADLINE", 0.05)
    with pytest.raises(NitroCliError, match="did not end"):
        await tool.cli().describe_enclaves()
    assert not tool.alive()
