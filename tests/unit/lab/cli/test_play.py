from __future__ import annotations

import errno
import multiprocessing.context
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.cli.play import PlayError, PlayResult, Progress, environment, play, require, unavailable
from lab.errors import LabUnavailableError

needs_ansible = pytest.mark.skipif((lacks := unavailable()) is not None, reason=f"Ansible cannot run here: {lacks}")


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 100.0
        self.progress = Progress(self.lines.append, lambda: self.now)

    def event(self, kind: str, **data: Any) -> None:
        self.progress.handle({"event": kind, "event_data": data})

    def task(self, kind: str, host: str, task: str, **data: Any) -> None:
        self.event(kind, **{"host": host, "task": task, "task_action": "ansible.builtin.raw", "res": {}} | data)


@pytest.fixture
def told() -> Told:
    return Told()


def test_tasks_and_the_time_of_plays_are_told(told: Told) -> None:
    told.event("playbook_on_play_start", name="Relay")
    told.task("runner_on_ok", "pod", "It runs", duration=1.25, res={"changed": True})
    told.now += 2
    told.event("playbook_on_play_start", name="Verification")
    told.task("runner_on_ok", "enclave", "It answers", duration=0.5)
    told.now += 1
    told.event("playbook_on_stats", ok={"pod": 3, "enclave": 1}, changed={"pod": 1})
    assert [line.split() for line in told.lines] == [
        ["pod:", "It", "runs", "(1.2", "s,", "changed)"],
        ["2.00", "s", "Relay"],
        ["enclave:", "It", "answers", "(0.5", "s)"],
        ["1.00", "s", "Verification"],
    ]
    assert told.progress.result == PlayResult(ok=4, changed=1)
    assert told.progress.failure is None
    assert told.progress.last == "the last task that ended is 'It answers' on enclave"


def test_an_include_is_no_task(told: Told) -> None:
    told.task("runner_on_ok", "pod", "The service runs", task_action="ansible.builtin.include_tasks")
    assert told.lines == []


def test_events_of_no_interest_are_passed_over(told: Told) -> None:
    told.progress.handle({"event": "verbose"})
    told.task("runner_on_skipped", "pod", "It runs")
    assert told.lines == []


@pytest.mark.parametrize("kind", ["runner_on_failed", "runner_on_unreachable"])
def test_the_first_failure_is_the_one_that_is_reported(told: Told, kind: str) -> None:
    told.task(kind, "pod", "It runs", res={"msg": "non-zero return code", "stderr": "no TUN\n", "stdout": ""})
    told.task(kind, "enclave", "It runs too", res={"msg": "because of that"})
    assert told.progress.failure is not None
    assert told.progress.failure.what == "'It runs' failed on pod"
    assert told.progress.failure.why == "non-zero return code\nno TUN"


def test_a_failure_that_the_playbook_ignores_is_none(told: Told) -> None:
    told.task("runner_on_failed", "pod", "It runs", ignore_errors=True)
    assert told.progress.failure is None


def test_the_environment_keeps_ansible_in_its_folder(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    assert {variables["ANSIBLE_HOME"], variables["ANSIBLE_REMOTE_TEMP"]} == {str(tmp_path), str(tmp_path / "tmp")}
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert Path(variables["ANSIBLE_CONFIG"]).is_file()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOENT, "missing"), (errno.EACCES, "forbidden"), (errno.ENOSYS, "forbidden")]
)
def test_a_machine_without_semaphores_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: str
) -> None:
    def refuse(_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(multiprocessing.context.BaseContext, "Lock", refuse)
    with pytest.raises(LabUnavailableError) as caught:
        require()
    assert caught.value.exit_code == 7
    assert caught.value.why.startswith(f"{kind}: /dev/shm")
    assert caught.value.fix


PLAYBOOK = """
- name: Files
  hosts: all
  vars: {ansible_connection: local, ansible_python_interpreter: "%(python)s"}
  tasks:
    - name: It is there
      ansible.builtin.copy: {dest: "%(folder)s/file", content: "text\\n", mode: "0644"}
    - name: It says
      ansible.builtin.raw: "grep -q '{{ wanted | default('text') }}' %(folder)s/file || { echo not that >&2; false; }"
      changed_when: false
"""


@pytest.fixture
def playbook(tmp_path: Path) -> Path:
    path = tmp_path / "site.yml"
    path.write_text(PLAYBOOK % {"python": sys.executable, "folder": tmp_path})
    return path


@needs_ansible
@pytest.mark.slow
def test_a_second_pass_changes_nothing(tmp_path: Path, playbook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    inventory = tmp_path / "inventory"
    inventory.write_text("here\n")
    lines: list[str] = []
    first, second = (
        play(tmp_path / "ansible", lines.append, timeout=300, playbook=playbook, inventory=inventory) for _ in range(2)
    )
    assert (first, second) == (PlayResult(ok=2, changed=1), PlayResult(ok=2, changed=0))
    assert [line.split()[1:4] for line in lines[:2]] == [["It", "is", "there"], ["It", "says", lines[1].split()[3]]]
    assert not (tmp_path / "home").exists()
    assert len(list((tmp_path / "ansible/artifacts").iterdir())) == 1


@needs_ansible
@pytest.mark.slow
def test_a_failed_task_is_an_error_with_its_output(tmp_path: Path, playbook: Path) -> None:
    inventory = tmp_path / "inventory"
    inventory.write_text("here wanted=other\n")
    with pytest.raises(PlayError, match="'It says' failed on here") as caught:
        play(tmp_path / "ansible", lambda _: None, timeout=300, playbook=playbook, inventory=inventory)
    assert "not that" in caught.value.why


@needs_ansible
@pytest.mark.slow
def test_a_playbook_that_is_none_is_an_error_with_what_ansible_says(tmp_path: Path, playbook: Path) -> None:
    playbook.write_text("- hosts: all\n  tusks: []\n")
    with pytest.raises(PlayError, match="ansible-playbook ended with") as caught:
        play(tmp_path / "ansible", lambda _: None, timeout=300, playbook=playbook, inventory=tmp_path)
    assert "tusks" in caught.value.why


@needs_ansible
@pytest.mark.slow
def test_a_playbook_that_does_not_end_is_ended(tmp_path: Path, playbook: Path) -> None:
    playbook.write_text("- hosts: all\n  tasks: [{name: It hangs, ansible.builtin.raw: sleep 30}]\n")
    inventory = tmp_path / "inventory"
    inventory.write_text("here ansible_connection=local\n")
    with pytest.raises(PlayError, match="did not end within 1 s") as caught:
        play(tmp_path / "ansible", lambda _: None, timeout=1, playbook=playbook, inventory=inventory)
    assert caught.value.why == "no task has ended"
