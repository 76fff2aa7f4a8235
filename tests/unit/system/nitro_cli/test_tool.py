"""The verbs, against a shell script that prints real output of the tool, and records its calls."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from tests.unit.system.nitro_cli.scripted_tool import COLLISION, DESCRIBED, HUGE_PAGES, REQUEST, RUNNING, Tool
from wgvsock.addresses import Cid
from wgvsock.system.nitro_cli import NitroCli, NitroCliError, RunRequest
from wgvsock.system.nitro_cli.tool import FIRST_RETRY, RUN_ATTEMPTS


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


@pytest.mark.asyncio
async def test_a_launch_waits_for_the_lock_of_another_process(tool: Tool) -> None:
    tool.answers("run-enclave", RUNNING)
    (tool.folder / "lock").touch(mode=0o600)
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
    listing = await tool.cli().describe_enclaves()
    assert listing.complete() == listing.enclaves
    first, second = listing.enclaves
    assert (first.running, first.debug) == (True, True)
    assert (second.running, second.debug) == (False, False)


@pytest.mark.asyncio
async def test_terminate_reads_json_behind_prose(tool: Tool) -> None:
    answer = {"EnclaveID": RUNNING["EnclaveID"], "Terminated": True}
    tool.answers("terminate-enclave", "Successfully terminated enclave i-05.\n" + json.dumps(answer))
    await tool.cli().terminate_enclave("i-05f6ed443a0123456-enc173dfe3e0123456")
    assert tool.calls == ["terminate-enclave --enclave-id i-05f6ed443a0123456-enc173dfe3e0123456"]


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


# A readable answer together with a failure. It is the tool's way to say that it could not speak with an enclave.


UNREACHED = "Failed connections: 1\n[ E39 ] Enclave process connection failure.\n"


@pytest.mark.asyncio
async def test_a_list_that_is_not_complete_says_what_is_there(tool: Tool) -> None:
    tool.answers("describe-enclaves", [DESCRIBED], stderr=UNREACHED, code=39)
    listing = await tool.cli().describe_enclaves()
    assert [one.cid for one in listing.enclaves] == [10]
    with pytest.raises(NitroCliError) as caught:
        listing.complete()
    assert caught.value.codes == ("E39",)


@pytest.mark.asyncio
async def test_a_failure_without_a_list_is_one(tool: Tool) -> None:
    tool.answers("describe-enclaves", "", stderr=UNREACHED, code=39)
    with pytest.raises(NitroCliError, match="E39"):
        await tool.cli().describe_enclaves()


@pytest.mark.asyncio
async def test_an_enclave_that_was_launched_by_a_call_that_failed_is_ours_if_it_runs(
    tool: Tool, caplog: pytest.LogCaptureFixture
) -> None:
    tool.answers("run-enclave", RUNNING, stderr=UNREACHED, code=39)
    tool.answers("describe-enclaves", [DESCRIBED])
    assert (await tool.cli().run_enclave(REQUEST)).cid == 10
    assert tool.calls[1:] == ["describe-enclaves"]  # and no second launch
    assert "but reported a failure" in caplog.text


@pytest.mark.asyncio
async def test_an_enclave_that_was_launched_by_a_call_that_failed_and_is_gone(tool: Tool) -> None:
    tool.answers("run-enclave", RUNNING, stderr=UNREACHED, code=39)
    tool.answers("describe-enclaves", [])
    with pytest.raises(NitroCliError, match="E39"):
        await tool.cli().run_enclave(REQUEST)
    assert len(tool.calls) == 2


@pytest.mark.asyncio
async def test_an_enclave_is_gone_when_a_complete_list_lacks_it(tool: Tool) -> None:
    tool.answers("terminate-enclave", "no JSON")
    tool.answers("describe-enclaves", [], stderr=UNREACHED, code=39)
    with pytest.raises(NitroCliError, match="E39"):
        await tool.cli().terminate_enclave("i-05-enc1")
    tool.answers("describe-enclaves", [])
    await tool.cli().terminate_enclave("i-05-enc1")


@pytest.mark.asyncio
async def test_measurements_of_a_call_that_failed_are_none(tool: Tool) -> None:
    tool.answers("describe-eif", {"Measurements": {"PCR0": "00" * 48}}, stderr="[ E19 ] File.", code=19)
    with pytest.raises(NitroCliError, match="E19"):
        await tool.cli().measurements("/images/app.eif")


@pytest.mark.parametrize("place", ["link", "fifo", "open", "folder"])
@pytest.mark.asyncio
async def test_a_lock_that_is_not_ours_alone_is_refused(tool: Tool, place: str) -> None:
    lock = tool.folder / "lock"
    match place:
        case "link":
            lock.symlink_to(tool.folder / "elsewhere")
        case "fifo":
            os.mkfifo(lock)
        case "open":
            lock.touch(mode=0o666)
            lock.chmod(0o666)
        case "folder":
            tool.folder.chmod(0o755)
    with pytest.raises(NitroCliError, match="lock") as caught:
        await tool.cli().run_enclave(REQUEST)
    assert str(tool.folder) in caught.value.fix
    assert not (tool.folder / "elsewhere").exists()
