from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from lab.backend import Completed
from lab.cli import raising, standing
from lab.cli.play import PlayError, PlayResult
from lab.deadline import Deadline
from lab.errors import LabError, LabTimeoutError, LabUnavailableError
from lab.image.errors import PackageError
from lab.topology import TOPOLOGY, Node


class FakeBackend:
    name = "fake"
    takes = "a while"
    topology = TOPOLOGY
    processors = "emulated (TCG): as asked"
    nsm_device = "/dev/nsm by a daemon"
    own_processes = ("signer", "tap")
    calls: list[str]
    broken_nodes: tuple[Node, ...] = ()
    processes = ("signer", "tap")
    up_fails = False
    lacks = ""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.directory = Path("/nowhere")

    @classmethod
    def attach(cls, state: dict[str, Any]) -> FakeBackend:
        return cls(state["identity"])

    @classmethod
    def unavailable(cls) -> str:
        return cls.lacks

    @classmethod
    def prepare(cls) -> None:
        cls.calls.append("prepare")

    def state(self) -> dict[str, Any]:
        return {"identity": self.identity}

    def up(self) -> None:
        self.calls.append("up")
        if self.up_fails:
            raise LabError("no boot")

    def down(self) -> None:
        self.calls.append("down")

    def detach(self) -> None:
        self.calls.append("detach")

    def process(self, name: str) -> str | None:
        return name if name in self.processes else None

    def run(self, node: Node, argv: list[str]) -> Completed:
        return Completed(tuple(argv), int(node in self.broken_nodes), b"", b"")

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds, scale=3)

    def keep_artifacts(self, folder: Path) -> None:
        self.calls.append(f"keep {folder}")

    def leftovers(self) -> list[str]:
        return []


class FakeLadder:
    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend

    def stop(self) -> None:
        self.backend.calls.append("stop")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeBackend]:
    class Fresh(FakeBackend):
        calls: list[str] = []  # noqa: RUF012 (one list a test)

    def play(_directory: Path, _say: object, *, timeout: float) -> PlayResult:
        assert timeout == 3 * raising.PLAY_TIMEOUT
        Fresh.calls.append("play")
        return PlayResult(ok=3, changed=1)

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(standing, "backend_class", lambda _name: Fresh)
    monkeypatch.setattr(raising, "backend_class", lambda _name: Fresh)
    monkeypatch.setattr(raising, "choose", lambda _name: ("fake", "as asked"))
    monkeypatch.setattr(raising, "play", play)
    monkeypatch.setattr(raising, "require", lambda: None)
    monkeypatch.setattr(standing, "find", lambda: FakeLadder(Fresh("found")))
    return Fresh


def test_a_new_one_is_prepared_raised_and_provisioned(
    fake: type[FakeBackend], capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising.raise_up("") == PlayResult(ok=3, changed=1)
    assert fake.calls == ["prepare", "up", "detach", "play"]
    assert standing.is_standing()
    said = capsys.readouterr().err
    assert "this takes a while; LAB=netns takes seconds" in said
    assert "processors: emulated (TCG): as asked\n" in said
    assert "security module: /dev/nsm by a daemon\n" in said


def test_nothing_boots_where_ansible_cannot_run(fake: type[FakeBackend], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise LabUnavailableError("Ansible cannot run here")

    monkeypatch.setattr(raising, "require", refuse)
    with pytest.raises(LabUnavailableError):
        raising.raise_up("")
    assert fake.calls == []


def test_a_backend_that_can_be_had(fake: type[FakeBackend]) -> None:
    assert raising.why_not_here(fake) == ""  # type: ignore[arg-type]
    assert fake.calls == ["prepare"]


def test_a_backend_that_this_machine_lacks_something_for(fake: type[FakeBackend]) -> None:
    fake.lacks = "missing: a tool"
    assert raising.why_not_here(fake) == "missing: a tool"  # type: ignore[arg-type]
    assert fake.calls == []


def test_a_backend_whose_packages_cannot_be_fetched(fake: type[FakeBackend], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PackageError("cannot fetch qemu", why="no route")

    monkeypatch.setattr(fake, "prepare", fail)
    assert raising.why_not_here(fake) == "cannot fetch qemu: no route"  # type: ignore[arg-type]


def test_one_that_stands_is_gone_over_again(fake: type[FakeBackend]) -> None:
    raising.raise_up("")
    fake.calls.clear()
    raising.raise_up("")
    assert fake.calls == ["detach", "play"]


@pytest.mark.parametrize(("attribute", "value"), [("processes", ("tap",)), ("broken_nodes", (Node.POD,))])
def test_one_that_is_broken_is_replaced(fake: type[FakeBackend], attribute: str, value: object) -> None:
    raising.raise_up("")
    fake.calls.clear()
    setattr(fake, attribute, value)
    raising.raise_up("")
    assert fake.calls == ["stop", "down", "prepare", "up", "detach", "play"]


def test_another_backend_is_refused_while_one_stands(fake: type[FakeBackend]) -> None:
    raising.raise_up("")
    fake.calls.clear()
    with pytest.raises(LabError, match="a fake laboratory is up"):
        raising.raise_up("other")
    assert fake.calls == []


def test_a_failed_boot_keeps_its_traces_and_leaves_nothing(fake: type[FakeBackend]) -> None:
    fake.up_fails = True
    with pytest.raises(LabError, match="no boot"):
        raising.raise_up("")
    assert fake.calls == ["prepare", "up", f"keep {raising.ARTIFACTS}", "down"]
    assert not standing.is_standing()


def test_a_failed_task_keeps_its_traces_and_the_laboratory(
    fake: type[FakeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> PlayResult:
        raise PlayError("'It runs' failed on pod")

    monkeypatch.setattr(raising, "play", fail)
    with pytest.raises(PlayError):
        raising.raise_up("")
    assert fake.calls[-1] == f"keep {raising.ARTIFACTS}"
    assert "down" not in fake.calls
    assert standing.is_standing()


def test_taken_down_it_is_forgotten(fake: type[FakeBackend]) -> None:
    raising.raise_up("")
    assert raising.take_down() == []
    assert fake.calls[-2:] == ["stop", "down"]
    assert not standing.is_standing()


def test_a_long_phase_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    twice = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            twice.set()

    monkeypatch.setattr(raising, "say", say)
    raising.timed("machines booted", lambda: twice.wait(60), heartbeat=0.001)
    assert "… not yet: machines booted" in said[0]
    assert said[-1].endswith(" s  machines booted")
    assert len(said) >= 3


def test_a_phase_that_fails_is_not_said_to_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(raising, "say", said.append)
    with pytest.raises(ZeroDivisionError):
        raising.timed("machines booted", lambda: 1 // 0)
    assert said == []


class Starting:
    """A laboratory whose services have been started: the Relay's answers, one per query."""

    def __init__(self, folder: Path, *answers: Any) -> None:
        self.backend = self
        self.directory = folder
        self.relay: object | None = "relay"
        self.enclave: object | None = "enclave"
        self.answers = [None, *answers]
        (folder / "logs").mkdir()
        (folder / "logs/relay.log").write_text("the last word")

    def status(self, node: Node) -> Any:
        assert node is Node.POD
        return self.answers[0]

    def look_ready(self) -> Any:
        if len(self.answers) > 1:
            del self.answers[0]
        if isinstance(self.answers[0], LabError):
            raise self.answers[0]
        return self.answers[0] if self.answers[0] and self.answers[0]["ready"] else None

    def refresh_logs(self) -> None: ...

    def deadline(self, seconds: float) -> Deadline:
        now = iter(range(100))
        return Deadline(seconds, clock=lambda: next(now), sleep=lambda _: None)


def says(*, ready: bool = False, rejected: int = 0) -> dict[str, Any]:
    return {"ready": ready, "provisioning": {"attempts": {"rejected": rejected}}}


def test_it_is_waited_for_until_it_is_ready(tmp_path: Path) -> None:
    raising.wait_until_ready(Starting(tmp_path, None, says(), says(ready=True)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["relay", "enclave"])
def test_a_service_that_does_not_run_is_not_waited_for(tmp_path: Path, name: str) -> None:
    lab = Starting(tmp_path)
    setattr(lab, name, None)
    with pytest.raises(LabError, match=f"the {name} is not running") as caught:
        raising.wait_until_ready(lab)  # type: ignore[arg-type]
    assert caught.value.why == {"relay": "the last word", "enclave": "it was never started"}[name]


def test_a_service_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="relay ended with 7"):
        raising.wait_until_ready(Starting(tmp_path, says(), LabError("relay ended with 7")))  # type: ignore[arg-type]


def test_a_refusal_is_not_waited_out(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="refuses the Enclave: the last word"):
        raising.wait_until_ready(Starting(tmp_path, says(), says(rejected=1)))  # type: ignore[arg-type]


def test_a_refusal_of_before_says_nothing(tmp_path: Path) -> None:
    lab = Starting(tmp_path, says(rejected=2), says(rejected=2), says(ready=True, rejected=2))
    lab.answers[0] = says(rejected=2)
    raising.wait_until_ready(lab)  # type: ignore[arg-type]


def test_it_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with pytest.raises(LabTimeoutError, match="the tunnel to be ready"):
        raising.wait_until_ready(Starting(tmp_path, says()))  # type: ignore[arg-type]
