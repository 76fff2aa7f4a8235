"""The steps of `make try`, without the kernel: what is typed, shown and kept."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from lab.cli import tryout
from lab.cli.tryout import STEPS, Step, Tryout, page_of, steady
from lab.errors import LabError

SCRIPT = """\
echo one
cat > file <<EOF
two |
three
EOF
echo 4 |
    cat \\
    -
echo five"""


def test_a_script_is_taken_apart_into_commands() -> None:
    assert Step("", SCRIPT).commands() == [
        "echo one",
        "cat > file <<EOF\ntwo |\nthree\nEOF",
        "echo 4 |\n    cat \\\n    -",
        "echo five",
    ]


def test_lines_fit_a_terminal() -> None:
    assert max(len(line) for step in STEPS for line in step.script.split("\n")) <= 88


def test_a_command_is_shown_as_it_is_typed_and_with_what_it_prints(tmp_path: Path) -> None:
    shown: list[str] = []
    run = Tryout(tmp_path, shown.append)
    run.run("echo one |\n    cat")
    run.run("pwd >&2")
    assert "".join(shown) == f"$ echo one |\n>     cat\none\n$ pwd >&2\n{tmp_path}\n"


def test_a_command_that_fails_is_told_with_the_services_last_words(tmp_path: Path) -> None:
    (tmp_path / "relay.log").write_text("first\nsecond\n")
    with pytest.raises(LabError, match="a step ended with 3: first\nsecond"):
        Tryout(tmp_path, lambda _: None).run("exit 3")


def test_a_pipe_that_fails_is_seen(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="ended with 1"):
        Tryout(tmp_path, lambda _: None).run("false | cat")


def test_what_runs_on_is_ended(tmp_path: Path) -> None:
    run = Tryout(tmp_path, lambda _: None)
    run.run("sleep 1000 & echo $! > pid")
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 0)
    run.end()
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_the_laboratory_and_the_command_are_found(tmp_path: Path) -> None:
    shown: list[str] = []
    Tryout(tmp_path, shown.append).run("command -v wgvsock && python -c 'import lab'")
    assert shown[1].endswith("/wgvsock\n")


def test_a_page_has_the_same_text_for_each_run() -> None:
    root, other = "0123456789abcdef" * 4, "fedcba9876543210" * 4
    texts = [
        f"{root} 0.37 ms, 1/2.5/3 ms, 17 s ago, time 3ms in /work/wgvsock-try-a/x",
        f"{other} 11.2 ms, 9/9.5/10 ms, 2 s ago, time 0ms in /work/wgvsock-try-b/x",
    ]
    pages = [page_of([text], Path(f"/work/wgvsock-try-{name}")) for text, name in zip(texts, "ab", strict=True)]
    assert pages[0] == pages[1]
    assert "/try/x" in pages[0]


def test_what_does_not_vary_stays() -> None:
    pcr = "a0" * 48
    assert steady(f"{pcr} 198.18.73.3/31 192.0.2.1 8080") == f"{pcr} 198.18.73.3/31 192.0.2.1 8080"


def test_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lab.cli.tryout.tempfile.mkdtemp", lambda prefix: str(tmp_path / prefix))
    (tmp_path / "wgvsock-try-").mkdir()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert tryout.run([Step("Says it.", "echo hello")], page=tmp_path / "page.md") == 0
    assert "\n# Says it.\n$ echo hello\nhello\n" in capsys.readouterr().out
    assert "Says it.\n\n```console\n$ echo hello\nhello\n```\n" in (tmp_path / "page.md").read_text()
    assert not (tmp_path / "wgvsock-try-").exists()
