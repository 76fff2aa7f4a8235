from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from lab.programs import counted


def test_the_tasks_of_a_running_service_are_written_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "some_service.py"
    module.write_text("def main(arguments):\n    raise NotImplementedError\n")
    monkeypatch.syspath_prepend(tmp_path)
    import some_service  # type: ignore[import-not-found]

    tasks = tmp_path / "relay.tasks"

    async def serve() -> int:
        helper = asyncio.create_task(asyncio.Event().wait(), name="waiting")
        await asyncio.sleep(0)  # it has begun
        os.kill(os.getpid(), counted.COUNT)
        helper.cancel()
        return 5

    given: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        given.append(arguments)
        return asyncio.run(serve())

    monkeypatch.setattr(some_service, "main", main)
    before = signal.getsignal(counted.COUNT)
    try:
        assert counted.main([str(tasks), "some_service", "relay", "run"]) == 5
    finally:
        signal.signal(counted.COUNT, before)
        sys.modules.pop("some_service", None)
    assert given == [["relay", "run"]]
    counts = json.loads(tasks.read_text())
    assert counts["Event.wait"] == 1
    assert sum(counts.values()) == 2


def test_without_a_loop_there_are_none() -> None:
    assert counted.running_tasks() == {}
