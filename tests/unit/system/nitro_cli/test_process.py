"""A call of the tool ends, whatever the tool does."""

from __future__ import annotations

import asyncio
import os
import select
import tracemalloc
from pathlib import Path

import pytest

from tests.unit.system.nitro_cli.scripted_tool import Tool
from wgvsock.system.nitro_cli import NitroCli, NitroCliError


@pytest.mark.parametrize("stream", ["1", "2"])
@pytest.mark.asyncio
async def test_endless_output_is_cut_off(tool: Tool, stream: str) -> None:
    script = "while :; do echo 0123456789012345678901234567890123456789012345678901234567890123456789; done"
    tool.path.write_text(f"#!/bin/sh\necho $$ > {tool.folder}/pid\n{script} >&{stream}\n")
    tracemalloc.start()
    with pytest.raises(NitroCliError, match="printed more than 262144 bytes"):
        await tool.cli().describe_enclaves()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 262_144
    assert not tool.alive()


@pytest.mark.asyncio
async def test_what_the_tool_has_started_goes_with_it(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tool.folder / "fifo"
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    started = asyncio.Event()
    asyncio.get_running_loop().add_reader(held, started.set)
    tool.path.write_text(f"#!/bin/sh\nexec 3> {fifo}\nsleep 600 &\necho >&3\nwait\n")

    class Clock:
        """The time is over when the tool has started its child."""

        async def __aenter__(self) -> None:
            await started.wait()
            raise TimeoutError

        async def __aexit__(self, *_: object) -> None: ...

    limits = iter([Clock()])
    really = asyncio.timeout
    monkeypatch.setattr(
        "wgvsock.system.nitro_cli.process.asyncio.timeout", lambda seconds: next(limits, None) or really(seconds)
    )
    with pytest.raises(NitroCliError, match="did not end"):
        await tool.cli().describe_enclaves()
    asyncio.get_running_loop().remove_reader(held)
    assert os.read(held, 2) == b"\n"
    assert select.select([held], [], [], 30)[0]
    assert os.read(held, 1) == b""  # nobody is left to hold it
    os.close(held)


@pytest.mark.asyncio
async def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    with pytest.raises(NitroCliError, match="No such file") as caught:
        await NitroCli(str(tmp_path / "nowhere")).describe_enclaves()
    assert caught.value.codes == ()


@pytest.mark.asyncio
async def test_a_tool_that_hangs_is_killed(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.path.write_text(f"#!/bin/sh\necho $$ > {tool.folder}/pid\nexec sleep 60\n")
    monkeypatch.setattr("wgvsock.system.nitro_cli.tool.QUERY_DEADLINE", 0.05)
    with pytest.raises(NitroCliError, match="did not end"):
        await tool.cli().describe_enclaves()
    assert not tool.alive()
