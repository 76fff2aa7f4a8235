"""The tool's surface: arguments, numbers, messages, JSON. No guest is booted (tests/e2e/test_launch.py does that)."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.errors import LabError
from lab.image.cpio import File
from lab.image.eif import EnclaveImage, measure, pack
from lab.image.enclave import boot_services, overlay
from lab.nitro import cli, failures
from lab.nitro.enclaves import FIRST_CID, Parent
from lab.nitro.failures import NitroFailure
from lab.qemu.machine import Machine, VsockDevice

IMAGE = EnclaveImage(b"kernel", "quiet", (b"init", b"app"), {"ImageName": "app", "ImageVersion": "1.0"})


class FakeMachine:
    """What the parent needs of a machine, alive while its file exists."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pid = 4711

    def describe(self) -> dict[str, Any]:
        (self.directory / "alive").touch()
        return {}

    def adopt(self, _description: Mapping[str, Any]) -> None:
        pass

    def exit_code(self) -> int | None:
        return None if (self.directory / "alive").exists() else 1

    def kill(self) -> None:
        (self.directory / "alive").unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def parent_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A parent whose enclaves start at once."""
    monkeypatch.setenv("NITRO_CLI_SOCKETS_PATH", str(tmp_path / "state"))
    monkeypatch.setenv("WGVSOCK_LAB_ENCLAVE_MEMORY", "1024")
    monkeypatch.setenv("WGVSOCK_LAB_ENCLAVE_CPUS", "4")
    monkeypatch.setattr("lab.nitro.enclaves._tools", lambda: None)
    monkeypatch.setattr("lab.nitro.enclaves._accelerator", lambda _tools: "tcg")
    monkeypatch.setattr("lab.nitro.enclaves.Machine", lambda _spec, _tools, directory: FakeMachine(directory))
    monkeypatch.setattr(Parent, "_boot", lambda *_arguments, **_options: None)
    monkeypatch.setattr(VsockDevice, "describe", lambda _self: None)
    image = tmp_path / "app.eif"
    image.write_bytes(pack(IMAGE))
    return image


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    code = cli.main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, json.loads(output.out) if output.out else None, output.err


def run(capsys: pytest.CaptureFixture[str], image: Path, *more: object) -> tuple[int, Any, str]:
    return call(capsys, "run-enclave", "--eif-path", image, "--memory", 256, "--cpu-count", 2, *more)


def test_a_launch_prints_what_the_real_tool_prints(capsys: pytest.CaptureFixture[str], parent_instance: Path) -> None:
    code, enclave, messages = run(capsys, parent_instance)
    assert code == 0
    assert list(enclave) == [
        "EnclaveName", "EnclaveID", "ProcessID", "EnclaveCID", "NumberOfCPUs", "CPUIDs", "MemoryMiB"
    ]  # fmt: skip
    assert (enclave["EnclaveName"], enclave["EnclaveCID"], enclave["ProcessID"]) == ("app", FIRST_CID, 4711)
    assert enclave["EnclaveID"].startswith("i-")
    assert messages.startswith("Start allocating memory...\nStarted enclave with enclave-cid: 16, memory: 256 MiB")


def test_describe_adds_state_and_flags(capsys: pytest.CaptureFixture[str], parent_instance: Path) -> None:
    assert call(capsys, "describe-enclaves")[:2] == (0, [])
    _, first, _ = run(capsys, parent_instance)
    _, second, _ = run(capsys, parent_instance, "--enclave-name", "debugged", "--debug-mode", "--enclave-cid", 99)
    assert call(capsys, "describe-enclaves")[1] == [
        {**first, "State": "RUNNING", "Flags": "NONE"},
        {**second, "State": "RUNNING", "Flags": "DEBUG_MODE"},
    ]
    assert second["EnclaveCID"] == 99


def test_every_launch_has_a_new_cid_and_a_taken_name_gets_a_number(
    capsys: pytest.CaptureFixture[str], parent_instance: Path
) -> None:
    launched = [run(capsys, parent_instance)[1] for _ in range(2)]
    assert [one["EnclaveName"] for one in launched] == ["app", "app_1"]
    call(capsys, "terminate-enclave", "--all")
    launched.append(run(capsys, parent_instance)[1])
    assert [one["EnclaveCID"] for one in launched] == [16, 17, 18]
    assert len({one["EnclaveID"] for one in launched}) == 3
    assert len({one["EnclaveID"].partition("-enc")[0] for one in launched}) == 1


def test_an_enclave_that_ended_is_not_listed(capsys: pytest.CaptureFixture[str], parent_instance: Path) -> None:
    run(capsys, parent_instance)
    folder = parent_instance.parent / "state/app"
    (folder / "alive").unlink()
    assert call(capsys, "describe-enclaves")[1] == []
    assert not folder.exists()


def test_terminate_by_name_by_identity_and_all(capsys: pytest.CaptureFixture[str], parent_instance: Path) -> None:
    _, first, _ = run(capsys, parent_instance)
    code, answer, messages = call(capsys, "terminate-enclave", "--enclave-id", first["EnclaveID"])
    assert (code, answer["EnclaveID"], answer["Terminated"]) == (0, first["EnclaveID"], True)
    assert messages == f"Successfully terminated enclave {first['EnclaveID']}.\n"
    run(capsys, parent_instance)
    assert call(capsys, "terminate-enclave", "--enclave-name", "app")[0] == 0
    assert call(capsys, "terminate-enclave", "--all")[:2] == (0, [])
    assert call(capsys, "terminate-enclave", "--enclave-name", "app")[0] == failures.SOCKET


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (["run-enclave", "--memory", "256", "--cpu-count", "2"], failures.MISSING_ARGUMENT),
        (["run-enclave", "--eif-path", "x", "--cpu-count", "2"], failures.MISSING_ARGUMENT),
        (["run-enclave", "--eif-path", "x", "--memory", "256"], failures.MISSING_ARGUMENT),
        (["run-enclave", "--memory", "much"], failures.INVALID_ARGUMENT),
        (["run-enclave", "--cpu-count", "2", "--cpu-ids", "1", "3"], failures.CONFLICTING_ARGUMENT),
        (["run-enclave", "--config", "x", "--memory", "256"], failures.CONFLICTING_ARGUMENT),
        (["run-enclave", "--config", "/nonexistent"], failures.FILE_OPERATION),
        (["terminate-enclave"], failures.MISSING_ARGUMENT),
        (["describe-eif", "--eif-path", "/nonexistent"], failures.FILE_OPERATION),
        (["console", "--enclave-name", "nobody"], failures.SOCKET),
        ([], failures.MISSING_ARGUMENT),
    ],
)
def test_wrong_arguments_end_with_their_number(
    capsys: pytest.CaptureFixture[str], arguments: list[str], number: int
) -> None:
    code, output, messages = call(capsys, *arguments)
    assert (code, output) == (number, None)
    assert messages.startswith(f"[ E{number:02} ] ")
    assert f"cli-errors.html#E{number:02}" in messages


@pytest.mark.parametrize(
    ("more", "number"),
    [
        (["--memory", 2048], failures.INSUFFICIENT_MEMORY_AVAILABLE),
        (["--cpu-count", 5], failures.INSUFFICIENT_CPUS),
        (["--eif-path", "/nonexistent"], failures.FILE_OPERATION),
    ],
)
def test_a_failed_launch_reports_its_cause_then_the_lost_connection(
    capsys: pytest.CaptureFixture[str], parent_instance: Path, more: list[object], number: int
) -> None:
    code, _, messages = run(capsys, parent_instance, *more)
    assert code == failures.PROCESS_CONNECTION
    assert messages.index(f"[ E{number} ]") < messages.index("Failed connections: 1") < messages.index("[ E39 ]")


def test_memory_has_to_be_four_times_the_image(capsys: pytest.CaptureFixture[str], parent_instance: Path) -> None:
    parent_instance.write_bytes(bytes(65 << 20))
    code, _, messages = run(capsys, parent_instance)
    assert code == failures.PROCESS_CONNECTION
    assert "the minimum memory should be 260 MB" in messages


def test_a_damaged_image_does_not_boot(capsys: pytest.CaptureFixture[str], parent_instance: Path) -> None:
    parent_instance.write_bytes(pack(IMAGE)[:-1])
    code, _, messages = run(capsys, parent_instance)
    assert code == failures.PROCESS_CONNECTION
    assert "[ E36 ]" in messages


def test_a_guest_that_does_not_come_leaves_nothing(
    capsys: pytest.CaptureFixture[str], parent_instance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise LabError("no verdict")

    monkeypatch.setattr(Parent, "_boot", fail)
    code, _, messages = run(capsys, parent_instance)
    assert code == failures.PROCESS_CONNECTION
    assert "no verdict" in messages
    assert not (parent_instance.parent / "state/app").exists()


def test_two_launches_at_the_same_time_collide_as_the_real_ones(
    capsys: pytest.CaptureFixture[str], parent_instance: Path
) -> None:
    (parent_instance.parent / "state").mkdir()
    with (parent_instance.parent / "state/launching").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, messages = run(capsys, parent_instance)
    assert code == failures.PROCESS_CONNECTION
    assert messages.index("[ E36 ]") < messages.index("[ E39 ]")
    assert run(capsys, parent_instance)[0] == 0


@pytest.mark.parametrize("name", ["", "a b", "x" * 151, "../up"])
def test_names_are_checked(capsys: pytest.CaptureFixture[str], parent_instance: Path, name: str) -> None:
    code, _, _ = run(capsys, parent_instance, "--enclave-name", name)
    assert code == (0 if not name else failures.NAMING)


@pytest.mark.parametrize("cid", [0, 3, 0xFFFFFFFF])
def test_reserved_cids_are_refused(capsys: pytest.CaptureFixture[str], parent_instance: Path, cid: int) -> None:
    assert run(capsys, parent_instance, "--enclave-cid", cid)[0] == failures.INVALID_ARGUMENT


def test_the_configuration_can_come_from_a_file(capsys: pytest.CaptureFixture[str], parent_instance: Path) -> None:
    path = parent_instance.with_name("config.json")
    settings = {"eif_path": str(parent_instance), "memory_mib": 128, "cpu_count": 1, "enclave_name": "filed"}
    path.write_text(json.dumps({**settings, "debug_mode": True, "unknown": 1}))
    _, enclave, _ = call(capsys, "run-enclave", "--config", path)
    assert (enclave["EnclaveName"], enclave["MemoryMiB"], enclave["NumberOfCPUs"]) == ("filed", 128, 1)
    assert call(capsys, "describe-enclaves")[1][0]["Flags"] == "DEBUG_MODE"


def test_the_console_is_for_debug_mode(capsys: pytest.CaptureFixture[str], parent_instance: Path) -> None:
    run(capsys, parent_instance)
    code, _, messages = call(capsys, "console", "--enclave-name", "app")
    assert code == failures.CONSOLE_CONNECTION
    assert "--debug-mode" in messages


def test_the_console_is_followed_to_its_end(
    capfdbinary: pytest.CaptureFixture[bytes], parent_instance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(["run-enclave", "--eif-path", str(parent_instance), "--memory", "256", "--cpu-count", "1", "--debug-mode"])
    folder = parent_instance.parent / "state/app"
    (folder / "console.log").write_bytes(b"one\n")

    def more(_seconds: float) -> None:
        with (folder / "console.log").open("ab") as console:
            console.write(b"two\n")
        (folder / "alive").unlink()

    monkeypatch.setattr("lab.nitro.cli.time.sleep", more)
    capfdbinary.readouterr()
    assert cli.main(["console", "--enclave-name", "app"]) == 0
    assert capfdbinary.readouterr().out == b"one\ntwo\n"


def test_describe_eif_prints_the_measurements(capsys: pytest.CaptureFixture[str], parent_instance: Path) -> None:
    code, described, _ = call(capsys, "describe-eif", "--eif-path", parent_instance)
    assert code == 0
    assert described["EifVersion"] == 4
    assert described["CheckCRC"] is True
    assert described["IsSigned"] is False
    assert described["ImageName"] == "app"
    assert {key: described["Measurements"][f"PCR{key}"] for key in range(3)} == {
        key: value.hex() for key, value in measure(IMAGE).items()
    }


def test_a_failure_of_the_tool_itself_has_one_page() -> None:
    failure = NitroFailure(failures.NAMING, "Detail.")
    assert failure.exit_status == 58
    assert failure.report().startswith(
        "[ E58 ] Enclave naming error. Detail.\n\nFor more details, please visit https://"
    )


def test_an_overlay_is_a_folders_files(tmp_path: Path) -> None:
    (tmp_path / "o/etc/wgvsock").mkdir(parents=True)
    (tmp_path / "o/etc/wgvsock/enclave.toml").write_text("parent_cid = 2\n")
    script = tmp_path / "o/run"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert overlay(tmp_path / "o") == {
        "etc/wgvsock/enclave.toml": File(b"parent_cid = 2\n", 0o644),
        "run": File(b"#!/bin/sh\n", 0o755),
    }


def test_an_enclaves_services_are_the_module_and_the_command_that_it_lives_by() -> None:
    (path,) = boot_services(["wgvsock", "enclave", "run"])
    file = boot_services(["wgvsock", "enclave", "run"])[path]
    assert isinstance(file, File)
    module, command = json.loads(file.data)
    assert path == "etc/wgvsock/guest.json"
    assert module["device"] == "/dev/nsm"
    assert command == {"argv": ["wgvsock", "enclave", "run"], "main": True}


def test_the_fake_has_what_is_used_of_a_machine() -> None:
    used = {name for name in vars(FakeMachine) if not name.startswith("_")}
    assert used <= set(dir(Machine))
