"""Changes are written down first, survive a crash, and are undone once."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wgvsock.runtime.errors import AlreadyRunningError, JournalError
from wgvsock.runtime.journal import Journal, Place, Undo
from wgvsock.system.errors import NetlinkSetupError

HERE = Place("boot", "net:[1]")


class Machine:
    """Records what was undone. What is in `fails` cannot be."""

    def __init__(self) -> None:
        self.undone: list[tuple[str, Any]] = []
        self.fails: set[str] = set()

    async def undo(self, target: str, value: Any) -> None:
        if target in self.fails:
            raise NetlinkSetupError("cannot undo", why="it fails")
        self.undone.append((target, value))


@pytest.fixture
def machine() -> Machine:
    return Machine()


def open_journal(directory: Path, machine: Machine, place: Place = HERE) -> tuple[Journal, int]:
    journal = Journal(str(directory), "test", {"flag": machine.undo, "file": machine.undo}, place=place)
    return journal, journal.open()


def test_changes_are_taken_back_newest_first(tmp_path: Path, machine: Machine) -> None:
    journal, inherited = open_journal(tmp_path, machine)
    assert inherited == 0
    journal.record(Undo("flag", "a", 1))
    journal.record(Undo("flag", "b", 2))
    assert asyncio.run(journal.undo_all()) == []
    assert machine.undone == [("b", 2), ("a", 1)]
    assert journal.changes == ()
    assert not (tmp_path / "test.json").exists()


def test_the_first_value_of_a_target_stands(tmp_path: Path, machine: Machine) -> None:
    journal, _ = open_journal(tmp_path, machine)
    assert journal.record(Undo("flag", "a", 1)) == Undo("flag", "a", 1)
    assert journal.record(Undo("flag", "a", 2)) == Undo("flag", "a", 1)
    asyncio.run(journal.undo_all())
    assert machine.undone == [("a", 1)]


def test_what_somebody_else_needs_by_now_is_left_to_him(tmp_path: Path, machine: Machine) -> None:
    journal, _ = open_journal(tmp_path, machine)
    journal.record(Undo("flag", "a", 1))
    journal.record(Undo("flag", "b", 2))
    journal.forget("flag", "a")
    journal.forget("flag", "never recorded")
    journal.close()
    after_a_crash, inherited = open_journal(tmp_path, machine)
    assert inherited == 1
    asyncio.run(after_a_crash.undo_all())
    assert machine.undone == [("b", 2)]


def test_one_kind_alone(tmp_path: Path, machine: Machine) -> None:
    journal, _ = open_journal(tmp_path, machine)
    journal.record(Undo("flag", "a"))
    journal.record(Undo("file", "b"))
    asyncio.run(journal.undo("file"))
    assert machine.undone == [("b", None)]
    assert [undo.target for undo in journal.changes] == ["a"]


def test_after_a_crash_the_next_one_inherits(tmp_path: Path, machine: Machine) -> None:
    crashed, _ = open_journal(tmp_path, machine)
    crashed.record(Undo("flag", "kept", "before"))
    crashed.record(Undo("flag", "gone", "before"))
    crashed.close()  # the kernel does that for a process that is killed

    journal, inherited = open_journal(tmp_path, machine)
    assert inherited == 2
    assert journal.record(Undo("flag", "kept", "changed by the crashed one")).value == "before"
    asyncio.run(journal.undo_inherited())
    assert machine.undone == [("gone", "before")]
    asyncio.run(journal.undo_all())
    assert machine.undone == [("gone", "before"), ("kept", "before")]


def test_a_second_crash_loses_nothing(tmp_path: Path, machine: Machine) -> None:
    for _ in range(2):
        journal, _ = open_journal(tmp_path, machine)
        journal.record(Undo("flag", "a", "before"))
        journal.close()
    journal, inherited = open_journal(tmp_path, machine)
    assert inherited == 1
    assert asyncio.run(journal.undo_inherited()) == []
    assert machine.undone == [("a", "before")]


def test_what_cannot_be_taken_back_does_not_stop_the_rest(tmp_path: Path, machine: Machine) -> None:
    journal, _ = open_journal(tmp_path, machine)
    for name in ("a", "b", "c"):
        journal.record(Undo("flag", name))
    machine.fails.add("b")
    (error,) = asyncio.run(journal.undo_all())
    assert error.why == "it fails"
    assert machine.undone == [("c", None), ("a", None)]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (HERE, ["file", "flag"]),
        (Place("boot", "net:[2]"), ["file"]),  # a new pod's namespace: nothing of the old one is in it
        (Place("another boot", "net:[1]"), []),
    ],
)
def test_another_place(tmp_path: Path, machine: Machine, place: Place, expected: list[str]) -> None:
    crashed, _ = open_journal(tmp_path, machine)
    crashed.record(Undo("flag", "flag"))
    crashed.record(Undo("file", "file", in_namespace=False))
    crashed.close()
    journal, _ = open_journal(tmp_path, machine, place)
    asyncio.run(journal.undo_inherited())
    assert [target for target, _ in machine.undone] == expected


def test_one_process_at_a_time(tmp_path: Path, machine: Machine) -> None:
    first, _ = open_journal(tmp_path, machine)
    with pytest.raises(AlreadyRunningError) as caught:
        open_journal(tmp_path, machine)
    assert "another process with that name is running" in caught.value.why
    first.close()
    first.close()
    second, _ = open_journal(tmp_path, machine)
    second.close()


def test_the_record_is_private(tmp_path: Path, machine: Machine) -> None:
    directory = tmp_path / "new"
    journal, _ = open_journal(directory, machine)
    journal.record(Undo("flag", "a"))
    assert stat.S_IMODE((directory / "test.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"schema": "other", "place": {"boot_id": "boot", "network_namespace": "net:[1]"}, "changes": []}),
        json.dumps(
            {
                "schema": "wgvsock/journal/1",
                "place": {"boot_id": "boot", "network_namespace": "net:[1]"},
                "changes": [{"kind": "unknown", "target": "x"}],
            }
        ),
        *(
            json.dumps(
                {
                    "schema": "wgvsock/journal/1",
                    "place": {"boot_id": "boot", "network_namespace": "net:[1]"},
                    "changes": [{"kind": "flag", "target": "x"} | odd],
                }
            )
            for odd in ({"target": ["x"]}, {"target": 1}, {"kind": ["flag"]}, {"in_namespace": "yes"}, {"more": 1})
        ),
        "[" * 100_000,
    ],
)
def test_a_foreign_record_is_refused(tmp_path: Path, machine: Machine, content: str) -> None:
    (tmp_path / "test.json").touch(mode=0o600)
    (tmp_path / "test.json").write_text(content)
    with pytest.raises(JournalError, match="cannot read"):
        open_journal(tmp_path, machine)


def test_a_directory_that_cannot_be_made(tmp_path: Path, machine: Machine) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError) as caught:
        open_journal(tmp_path / "file" / "below", machine)
    assert caught.value.why == "Not a directory"


def test_a_record_that_cannot_be_read(tmp_path: Path, machine: Machine) -> None:
    (tmp_path / "test.json").mkdir()
    with pytest.raises(JournalError) as caught:
        open_journal(tmp_path, machine)
    assert caught.value.why == "test.json is not a regular file"


def test_a_change_that_cannot_be_written_down_is_not_made(tmp_path: Path, machine: Machine) -> None:
    journal, _ = open_journal(tmp_path, machine)
    (tmp_path / "test.json.new").mkdir()
    with pytest.raises(JournalError):
        journal.record(Undo("flag", "a"))


def test_the_current_place() -> None:
    place = Place.current()
    assert place == Place.current()
    assert place.network_namespace.startswith("net:[")


def test_what_could_not_be_taken_back_is_tried_again_by_the_next_start(tmp_path: Path, machine: Machine) -> None:
    first, _ = open_journal(tmp_path, machine)
    first.record(Undo("flag", "a", "the original"))
    machine.fails.add("a")
    asyncio.run(first.undo("flag"))
    assert first.record(Undo("flag", "a", "ours")).value == "the original"
    asyncio.run(first.undo_all())
    first.close()

    machine.fails.clear()
    second, inherited = open_journal(tmp_path, machine)
    assert inherited == 1
    assert asyncio.run(second.undo_inherited()) == []
    assert machine.undone == [("a", "the original")]
    assert not (tmp_path / "test.json").exists()


def link_to_elsewhere(record: Path) -> None:
    elsewhere = record.rename(record.with_name("elsewhere"))
    record.symlink_to(elsewhere)


@pytest.mark.parametrize("forge", [lambda record: record.chmod(0o666), link_to_elsewhere], ids=["mode", "link"])
def test_a_record_that_others_could_have_written_is_not_carried_out(
    tmp_path: Path, machine: Machine, forge: Callable[[Path], None]
) -> None:
    journal, _ = open_journal(tmp_path, machine)
    journal.record(Undo("flag", "a"))
    journal.close()
    forge(tmp_path / "test.json")
    with pytest.raises(JournalError, match="cannot use the runtime directory"):
        open_journal(tmp_path, machine)
    assert machine.undone == []


@pytest.mark.parametrize("place", ["test.lock", "test.json"])
@pytest.mark.parametrize("what", ["link", "dangling", "fifo", "open"])
def test_what_stands_in_the_place_of_lock_or_record(tmp_path: Path, machine: Machine, place: str, what: str) -> None:
    path, elsewhere = tmp_path / place, tmp_path / "elsewhere"
    match what:
        case "link":
            elsewhere.touch(mode=0o600)
            path.symlink_to(elsewhere)
        case "dangling":
            path.symlink_to(elsewhere)
        case "fifo":
            os.mkfifo(path, mode=0o600)
        case "open":
            path.touch()
            path.chmod(0o644)
    with pytest.raises(JournalError) as caught:
        open_journal(tmp_path, machine)
    assert place in caught.value.why
    assert str(path) in caught.value.fix
    assert not elsewhere.exists() or not elsewhere.read_bytes()


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o701, 0o770, 0o720])
def test_a_runtime_directory_that_is_open_to_others(tmp_path: Path, machine: Machine, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(JournalError) as caught:
        open_journal(tmp_path, machine)
    assert f"its mode is {mode:04o}" in caught.value.why
    assert f"chmod 700 {tmp_path}" in caught.value.fix
    assert not list(tmp_path.iterdir())
