"""The scripts in tools/: what a person sees on an unprepared machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
TOOLS = CHECKOUT / "tools"

Completed = subprocess.CompletedProcess[str]
AddProgram = Callable[[str, str], None]


def tool(name: str, *arguments: str | Path, environment: dict[str, str] | None = None) -> Completed:
    command = [str(TOOLS / name), *map(str, arguments)]
    environment = {"PATH": os.defpath, "HOME": "/nonexistent"} if environment is None else environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


# -- stages --------------------------------------------------------------------------------------------------------


def test_stages_say_where_they_are_and_go_on_after_a_failure() -> None:
    done = tool("stages", "3 echo one # the first", "1 exit 5 # the second", "10 echo three # the third")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:7] == [
        "== 1 of 3, about 3 min: the first",
        "one",
        "== 1 of 3: passed",
        "== 2 of 3, about 1 min: the second",
        "== 2 of 3: FAILED (exit 5: exit 5)",
        "== 3 of 3, about 10 min: the third",
        "three",
    ]
    assert [line.partition(" s  ")[2] for line in lines[8:11]] == [
        "the first: passed",
        "the second: FAILED (exit 5: exit 5)",
        "the third: passed",
    ]
    assert lines[11:] == ["== 1 of 3 failed"]


def test_stages_that_all_pass() -> None:
    done = tool("stages", "1 true # only")
    assert (done.returncode, done.stdout.splitlines()[-1].partition(" s  ")[2]) == (0, "only: passed")


# -- environment ---------------------------------------------------------------------------------------------------


def test_the_environment_that_is_the_machine_s_is_all_that_is_kept() -> None:
    kept = {"HOME": "/home/x", "PATH": os.defpath, "CI": "true", "PIP_CERT": "/etc/ca", "https_proxy": "http://p:1"}
    others = {"PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8", "LAB": "pair", "MAKEFLAGS": "-k", "PIP_NO_CACHE_DIR": "1"}
    done = tool("environment", environment=kept | others)
    assert set(done.stdout.splitlines()) == {f"{name}={value}" for name, value in kept.items()}


def test_ci_runs_in_that_environment_and_says_so(tmp_path: Path) -> None:
    """The real beginning of .ci/run, in a checkout whose only stage prints the environment."""
    shutil.copytree(TOOLS, tmp_path / "tools")
    (tmp_path / ".ci").mkdir()
    shutil.copy(CHECKOUT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "tools/stages").write_text("#!/bin/sh\nenv\n")
    (tmp_path / "bin").mkdir()
    for name in ("make", "python3"):
        (tmp_path / "bin" / name).symlink_to("/bin/true")
    path = f"{tmp_path}/bin:{os.defpath}"
    environment = {"PATH": path, "HOME": "/h", "CI": "true", "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci/run")], capture_output=True, text=True, check=True, env=environment
    )
    said, *variables = done.stdout.splitlines()
    assert said.endswith(": HOME PATH CI")
    bash_s_own = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert {line.partition("=")[0] for line in variables} - bash_s_own == {"HOME", "PATH", "CI"}


# -- make-venv -----------------------------------------------------------------------------------------------------

WITHOUT_ENSUREPIP = f"""
case "$*" in
*venv*) mkdir -p "$4/bin"; ln -sf /bin/false "$4/bin/python"; : > "$4/pyvenv.cfg"
        echo "The virtual environment was not created successfully because ensurepip is not available."; exit 1 ;;
*) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH without the distribution's installer."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("bash", "env", "dirname", "readlink", "ls", "id", "cat", "mkdir", "ln", "rm"):
        found = shutil.which(name, path=os.defpath)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


@pytest.fixture
def add_program(programs: Path) -> AddProgram:
    def add(name: str, script: str) -> None:
        (programs / name).unlink(missing_ok=True)  # a link: what it leads to is this machine's
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)

    return add


def make_venv(programs: Path, python: str, folder: Path) -> Completed:
    return tool("make-venv", python, folder, environment={"PATH": str(programs)})


def test_what_venv_says_of_its_package_never_reaches_the_reader(
    programs: Path, add_program: AddProgram, tmp_path: Path
) -> None:
    add_program("python3", WITHOUT_ENSUREPIP)
    done = make_venv(programs, "python3", tmp_path / "venv")
    assert done.returncode == 7
    assert not done.stderr
    what, why, fix = done.stdout.splitlines()
    assert what.startswith("error: these packages are missing: python3")
    assert why.startswith("why: ")
    assert fix.startswith("fix:   sudo apt-get install python3")


def test_a_half_made_environment_is_made_anew(programs: Path, add_program: AddProgram, tmp_path: Path) -> None:
    """What remains where ensurepip is missing: an interpreter without pip."""
    venv = tmp_path / "venv"
    add_program("python3", WITHOUT_ENSUREPIP)
    make_venv(programs, "python3", venv)
    assert (venv / "bin/python").is_symlink()
    cleared = tmp_path / "cleared"
    make = f': > "{cleared}"'
    add_program("python3", f'case "$*" in "-m venv --clear {venv}") {make} ;; *) exec {sys.executable} "$@" ;; esac')
    assert make_venv(programs, "python3", venv).returncode == 0
    assert cleared.exists()


def test_an_environment_that_works_is_kept(programs: Path, add_program: AddProgram, tmp_path: Path) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    add_program("works", "exit 0")
    for name in ("python", "pytest"):
        (tmp_path / "venv/bin" / name).symlink_to(programs / "works")
    add_program("python3", "exit 9")
    assert make_venv(programs, "python3", tmp_path / "venv").returncode == 0


def test_a_folder_that_is_no_environment_is_not_cleared(
    programs: Path, add_program: AddProgram, tmp_path: Path
) -> None:
    add_program("python3", f'exec {sys.executable} "$@"')
    (tmp_path / "precious").write_text("")
    done = make_venv(programs, "python3", tmp_path)
    assert done.returncode == 7
    assert "why:   the directory contains something else" in done.stdout
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ('case "$*" in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac', "and python is Python 3.9.2"),
        (None, "there is no python"),
    ],
)
def test_a_python_that_is_too_old_or_missing_is_named(
    programs: Path, add_program: AddProgram, tmp_path: Path, script: str | None, why: str
) -> None:
    if script is not None:
        add_program("python", script)
    done = make_venv(programs, "python", tmp_path / "venv")
    assert done.returncode == 7
    assert why in done.stdout.splitlines()[1]
    assert not (tmp_path / "venv").exists()


# -- packages ------------------------------------------------------------------------------------------------------


def test_apt_is_silent_where_it_succeeds(programs: Path, add_program: AddProgram, tmp_path: Path) -> None:
    add_program("id", "echo 0")
    add_program("apt-get", f'echo "(Reading database ... 5%"; echo "$@" >> {tmp_path}/asked')
    done = tool("install-packages", "nft", "wg", environment={"PATH": str(programs), "HOME": "/"})
    missing = {"nftables": "nft", "wireguard-tools": "wg"}
    wanted = [package for package, command in missing.items() if not shutil.which(command, path="/usr/sbin:/sbin")]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    asked = (tmp_path / "asked").read_text() if wanted else ""
    assert all(package in asked for package in wanted)


def test_apt_s_words_are_shown_where_it_fails(programs: Path, add_program: AddProgram) -> None:
    add_program("id", "echo 0")
    add_program("apt-get", 'case "$*" in *install*) echo "E: Unable to locate package nowhere"; exit 100 ;; esac')
    done = tool("apt-install", "nowhere", environment={"PATH": str(programs)})
    assert done.returncode == 7
    assert done.stdout.splitlines()[0] == "E: Unable to locate package nowhere"
    assert [line.partition(":")[0] for line in done.stdout.splitlines()[1:]] == ["error", "why", "fix"]


DEBIAN = ("iproute2", "nftables", "iputils-ping", "bind9-dnsutils", "procps")


@pytest.mark.parametrize(
    ("release", "line"),
    [
        ("ID=debian", "sudo apt-get install iproute2 nftables iputils-ping bind9-dnsutils procps"),
        (
            "ID=linuxmint\nID_LIKE='ubuntu debian'",
            "sudo apt-get install iproute2 nftables iputils-ping bind9-dnsutils procps",
        ),
        ("ID=fedora", "sudo dnf install iproute nftables iputils bind-utils procps-ng"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "sudo dnf install iproute nftables iputils bind-utils procps-ng"),
        ("ID=arch", "sudo pacman -S --needed iproute2 nftables iputils bind procps-ng"),
        (
            "ID=alpine",
            "install your distribution's equivalents, or use a Debian container: docker run ",
        ),
        ("", "install your distribution's equivalents, or use a Debian container: docker run "),
    ],
)
def test_the_remedy_is_for_this_distribution(tmp_path: Path, release: str, line: str) -> None:
    (tmp_path / "os-release").write_text(release)
    done = tool("elsewhere", *DEBIAN, environment={"PATH": os.defpath, "OS_RELEASE": str(tmp_path / "os-release")})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(line)
    assert done.stdout.count("\n") == 1


def test_a_mac_is_told_at_once_that_it_takes_a_container(programs: Path, tmp_path: Path) -> None:
    done = tool("make-venv", "python3", tmp_path / "venv", environment={"PATH": str(programs), "OSTYPE": "darwin23"})
    assert done.returncode == 7
    what, why, fix = done.stdout.splitlines()
    assert what == "error: wgvsock runs on Linux, and this is darwin23"
    assert why.startswith("why:   it needs network namespaces")
    assert fix.startswith("fix:   in a Linux container: docker run ")
    assert "make try VENV=" in fix
    assert not (tmp_path / "venv").exists()


# -- python-of -----------------------------------------------------------------------------------------------------


def test_a_newer_python_that_cannot_be_had_is_named(programs: Path, add_program: AddProgram, tmp_path: Path) -> None:
    def why() -> str:
        done = tool("python-of", "trixie", tmp_path / "python", environment={"PATH": str(programs)})
        assert done.returncode == 7
        assert not (tmp_path / "python").exists()
        return done.stdout.splitlines()[1]

    add_program("uname", "echo Linux aarch64")
    assert "x86-64" in why()
    add_program("uname", "echo Linux x86_64")
    assert why() == "why:   missing: apt-get"
    add_program("apt-get", "exit 1")
    assert why() == "why:   missing: dpkg-deb"


# -- commit-message ------------------------------------------------------------------------------------------------

BODY = "\n\nA later reader asks why.\n"


@pytest.mark.parametrize(
    "message",
    [
        f"relay: keep the old policy when a reload fails{BODY}",
        f"docs, tests: {'x' * 59}{BODY}# a comment of git's\n",
        f"tools/manuals: write them anew{BODY}# ------------------------ >8 ------------------------\ndiff\n",
        "Merge branch 'topic'\n",
        'Revert "relay: keep it"\n',
        "fixup! relay: keep it\n",
    ],
)
def test_a_commit_message_as_it_should_be(tmp_path: Path, message: str) -> None:
    (tmp_path / "message").write_text(message)
    done = tool("commit-message", tmp_path / "message")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (f"Fix the reload{BODY}", 'the subject is "Fix the reload"'),
        (f"Relay: fix the reload{BODY}", 'the subject is "Relay: fix the reload"'),
        ("", 'the subject is ""'),
        (f"relay: {'x' * 66}{BODY}", "the subject has 73 characters"),
        (f"relay: fix it.{BODY}", "the subject ends with a full stop"),
        ("relay: fix it\nbecause\n", "the second line is not empty"),
        ("relay: fix it\n\n# a comment\n", "there is no body"),
    ],
)
def test_a_commit_message_that_lacks_something(tmp_path: Path, message: str, why: str) -> None:
    (tmp_path / "message").write_text(message)
    done = tool("commit-message", tmp_path / "message")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1] == f"why:   {why}"
    assert done.stdout.splitlines()[2].startswith("fix:   ")
