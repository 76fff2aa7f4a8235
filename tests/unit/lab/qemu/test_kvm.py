from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.errors import LabError
from lab.image import cpio
from lab.qemu import kvm
from lab.qemu.kvm import Acceleration, boot_once
from lab.qemu.machine import Tools

KERNEL = Path("/cache/vmlinux-1234")
TOOLS = Tools(Path("/cache/host-5678"))


class Trial:
    """A boot with a known outcome that counts its calls."""

    def __init__(self, failure: str = "") -> None:
        self.failure = failure
        self.made = 0

    def __call__(self, tools: Tools, kernel: Path) -> str:
        self.made += 1
        return self.failure


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


@pytest.fixture
def choose(tmp_path: Path, device: Path) -> Callable[..., Acceleration]:
    def choose(trial: Trial, asked: str = "", tools: Tools = TOOLS, kernel: Path = KERNEL) -> Acceleration:
        environment = {"LAB_ACCEL": asked} if asked else {}
        return kvm.choose(tools, kernel, environment=environment, device=device, cache=tmp_path, boot=trial)

    return choose


def test_kvm_that_boots_the_kernel_is_used(choose: Callable[..., Acceleration]) -> None:
    assert choose(Trial()) == Acceleration("kvm", "it boots the pinned kernel")


def test_kvm_that_hangs_it_is_not_and_the_reason_is_told(choose: Callable[..., Acceleration]) -> None:
    assert str(choose(Trial("it hung"))) == "emulated (TCG): it hung"


@pytest.mark.parametrize("failure", ["", "it hung"])
def test_the_trial_is_made_once(choose: Callable[..., Acceleration], failure: str) -> None:
    trial = Trial(failure)
    assert choose(trial) == choose(trial, asked="auto")
    assert trial.made == 1


def test_another_qemu_or_kernel_is_tried_anew(choose: Callable[..., Acceleration]) -> None:
    trial = Trial("it hung")
    choose(trial)
    choose(trial, tools=Tools(Path("/cache/host-9999")))
    choose(trial, kernel=Path("/cache/vmlinux-9999"))
    assert trial.made == 3


def test_a_machine_that_has_booted_again_is_tried_anew(
    choose: Callable[..., Acceleration], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trial = Trial("it hung")
    choose(trial)
    other_boot = tmp_path / "boot_id"
    other_boot.write_text("another\n")
    monkeypatch.setattr(kvm, "_BOOT_ID", other_boot)
    trial.failure = ""
    assert choose(trial).name == "kvm"


def test_a_damaged_record_is_as_good_as_none(choose: Callable[..., Acceleration], tmp_path: Path) -> None:
    (tmp_path / "kvm.json").write_text('{"made_w')
    assert choose(Trial()).name == "kvm"


@pytest.mark.parametrize("asked", ["tcg", "kvm"])
def test_what_is_asked_for_is_obeyed_untried(choose: Callable[..., Acceleration], asked: str) -> None:
    trial = Trial()
    assert choose(trial, asked=asked) == Acceleration(asked, f"LAB_ACCEL={asked}")  # type: ignore[arg-type]
    assert trial.made == 0


def test_a_misspelt_wish_is_told_the_choices(choose: Callable[..., Acceleration]) -> None:
    with pytest.raises(LabError) as caught:
        choose(Trial(), asked="KVM")
    assert caught.value.fix == "choose one of auto, kvm, tcg"


def test_no_device_no_trial(choose: Callable[..., Acceleration], device: Path) -> None:
    device.unlink()
    trial = Trial()
    assert choose(trial) == Acceleration("tcg", f"{device} is missing")
    assert trial.made == 0


def test_a_device_of_others_is_forbidden_and_that_is_not_remembered(
    choose: Callable[..., Acceleration], device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        assert choose(Trial()) == Acceleration("tcg", f"{device} is forbidden to this user")
    assert choose(Trial()).name == "kvm"


@pytest.fixture
def run_qemu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Replace QEMU: the verdict that it leaves, how it ends, its output."""

    def install(verdict: str = "", returncode: int = 0, stderr: str = "") -> list[str]:
        command: list[str] = []

        def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            command.extend(argv)
            (path,) = (word.removeprefix("file:") for word in argv if word.endswith("/verdict"))
            Path(path).write_text(verdict)
            return subprocess.CompletedProcess(argv, returncode, "", stderr)

        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(kvm, "_ramdisk", bytes)
        return command

    return install


def test_the_trial_succeeds_with_user_space_s_word(run_qemu: Callable[..., list[str]]) -> None:
    command = run_qemu(verdict="ready\r\n")
    assert boot_once(TOOLS, KERNEL) == ""
    assert command[:3] == ["timeout", "--signal=KILL", "10"]
    assert command[command.index("-accel") + 1] == "kvm"


def test_a_machine_that_ends_without_it_has_failed(run_qemu: Callable[..., list[str]]) -> None:
    run_qemu(returncode=0)
    assert "does not boot under it: QEMU ended with 0" in boot_once(TOOLS, KERNEL)


def test_qemu_s_own_words_are_the_reason(run_qemu: Callable[..., list[str]]) -> None:
    run_qemu(returncode=1, stderr="one\nfailed to initialize kvm: Device or resource busy\n")
    assert boot_once(TOOLS, KERNEL).endswith(": failed to initialize kvm: Device or resource busy")


@pytest.mark.parametrize("returncode", [-9, 137])
def test_a_kernel_that_hangs(run_qemu: Callable[..., list[str]], returncode: int) -> None:
    run_qemu(returncode=returncode)
    assert boot_once(TOOLS, KERNEL).endswith("did not boot under it within 10 s")


def test_a_qemu_that_cannot_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str], *, timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(argv, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(kvm, "_ramdisk", bytes)
    assert "could not even be ended" in boot_once(TOOLS, KERNEL)


def test_the_trial_s_ramdisk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"\x7fELF")
    monkeypatch.setattr(kvm, "unpack_group", lambda *_: tmp_path)
    monkeypatch.setattr(kvm, "cache_directory", lambda: tmp_path)
    tree = cpio.unpack(kvm._ramdisk())
    assert tree["init"] == cpio.File(b"#!/bin/busybox sh\necho ready > /dev/ttyS1\n/bin/busybox reboot -f\n", 0o755)
    assert tree["bin/busybox"] == cpio.File(b"\x7fELF", 0o755)
    assert tree["dev/ttyS1"] == cpio.CharacterDevice(4, 65)
