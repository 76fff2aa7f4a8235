"""podman's arguments: a separate storage, no network by podman, and one container as a probe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.container.engine import IN_A_ROOT, Engine, unavailable, why_none_runs
from lab.errors import LabError

PODMAN = """#!/bin/sh
printf '%s\\n' "$*" >> "$0.log"
case "$*" in
    *"load --quiet"*) echo "Loaded image: localhost/wgvsock-relay:1" ;;
    *"image inspect localhost/wgvsock-relay:1") echo '[{"Id": "0123"}]' ;;
    *"inspect gone") echo "no such object" >&2; exit 125 ;;
    *"inspect there") echo '[{"State": {"Pid": 7}}]' ;;
    *"run bad"*) echo "Error: it is broken" >&2; exit 126 ;;
esac
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("podman", "runc", "mmdebstrap"):
        (folder / name).write_text(PODMAN)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.defpath}")
    monkeypatch.setattr(Engine, "within", ())
    why_none_runs.cache_clear()
    yield Engine(tmp_path / "engine")
    why_none_runs.cache_clear()


def said(tmp_path: Path) -> list[str]:
    return (tmp_path / "bin/podman.log").read_text().splitlines()


def test_each_command_names_the_storage(engine: Engine, tmp_path: Path) -> None:
    engine.run("ps")
    (line,) = said(tmp_path)
    words = line.split()
    for option, folder in {"--root": "storage", "--runroot": "run", "--tmpdir": "tmp"}.items():
        assert words[words.index(option) + 1] == str(tmp_path / "engine" / folder)
    assert line.endswith(" ps")


def test_podman_gets_a_root_that_it_is_content_with(tmp_path: Path) -> None:
    words = Engine(tmp_path).argv("ps")
    assert Path(words[2]).name == "root.py"
    assert words[: words.index("podman")] == list(IN_A_ROOT)
    assert 'lock_type = "file"' in Path(IN_A_ROOT[-1].partition("=")[2]).read_text()  # no /dev/shm is needed


def test_an_image_is_known_by_its_content(engine: Engine) -> None:
    assert engine.load(Path("/a.tar")) == "0123"


def test_inspect(engine: Engine) -> None:
    assert engine.inspect("gone") is None
    assert engine.inspect("there") == {"State": {"Pid": 7}}


def test_a_failure_has_podman_s_words(engine: Engine) -> None:
    with pytest.raises(LabError) as caught:
        engine.run("run", "bad")
    assert "it is broken" in caught.value.why
    assert engine.run("run", "bad", check=False).exit_code == 126


@pytest.mark.parametrize("network", ["", "bridge", "podman", "host", "slirp4netns", "ns:", "container:x"])
def test_no_network_that_podman_would_make_or_that_is_the_machine_s(network: str) -> None:
    with pytest.raises(LabError, match="no container gets the network"):
        Engine.create_words("n", network, [], "image", [])


@pytest.mark.parametrize("network", ["none", "ns:/run/netns/pod"])
def test_a_container(network: str) -> None:
    words = Engine.create_words("n", network, ["--read-only"], "image", ["--config", "x"])
    assert words[:5] == ["run", "--name", "n", "--network", network]
    assert words[-4:] == ["--read-only", "image", "--config", "x"]


def test_close_lets_podman_unmount_first(engine: Engine, tmp_path: Path) -> None:
    engine.close()  # nothing was ever there
    assert not (tmp_path / "bin/podman.log").exists()
    engine.folder.mkdir()
    engine.close()
    assert [line.rpartition("none ")[2] for line in said(tmp_path)] == [
        "rm --all --force --time 0",
        "rmi --all --force",
    ]
    assert not engine.folder.exists()


def test_what_is_missing_is_named(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable() is None
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin/runc").unlink()
    assert str(unavailable()) == "missing: runc (apt-get install runc)"


def test_one_container_is_run_to_know_whether_any_does(engine: Engine, tmp_path: Path) -> None:
    assert unavailable() is None
    assert unavailable() is None
    (line,) = [line for line in said(tmp_path) if " run --name probe " in line]
    for option in ("--network none", "--memory 64m", "--cap-drop=ALL", "--security-opt seccomp=", "--rootfs"):
        assert option in line
    assert not Path(line.split()[1]).exists()  # its storage


def test_a_machine_where_none_runs_has_the_engine_s_words(engine: Engine, tmp_path: Path) -> None:
    podman = tmp_path / "bin/podman"
    podman.write_text("#!/bin/sh\necho 'Error: runc: pivot_root:' >&2\necho 'invalid argument' >&2\nexit 126\n")
    reason = unavailable()
    assert reason is not None
    assert (reason.kind, reason.what) == ("forbidden", "containers: Error: runc: pivot_root: invalid argument")
    why_none_runs.cache_clear()
    podman.write_text("#!/bin/sh\nexit 126\n")
    assert "podman ended with 126" in str(unavailable())
