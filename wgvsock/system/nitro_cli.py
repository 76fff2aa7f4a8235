"""The ``nitro-cli`` tool: run, describe and terminate enclaves, with errors that say what is wrong.

Facts that shape this module (AWS Nitro Enclaves user guide, "Nitro Enclaves CLI", and the tool's issue tracker):

* standard output is JSON, with prose in front of it in some versions; standard error is prose with ``[ E36 ]`` codes.
  One failure prints several: the first is nearest to the cause, except for E36 and E39, which only say that the enclave
  is not there;
* two ``run-enclave`` at the same time on one machine fail with E36 and E39: calls are serialised by a lock file, and
  retried where the lock is not shared with whoever else calls;
* missing huge pages are reported as an unreadable image (E35) as often as what they are (E27).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wgvsock.addresses import Cid
from wgvsock.errors import SystemSetupError

RUN_DEADLINE: Final = 180.0
"""Seconds for ``run-enclave``: it copies the image into huge pages and waits for the boot heartbeat."""

QUERY_DEADLINE: Final = 30.0
"""Seconds for every other command; ``describe-enclaves`` itself gives up on a silent enclave after 3."""

RUN_ATTEMPTS: Final = 5
FIRST_RETRY: Final = 1.0
"""Seconds before the second attempt, doubled for each further one: another's launch takes a few seconds."""

_LOCK_POLL: Final = 0.2  # seconds between two tries for the lock
_LONGEST_OUTPUT: Final = 1 << 20  # bytes of JSON; a describe of four enclaves, with their images' metadata, is some KiB
_CODE: Final = re.compile(r"\[ (E\d\d) \]")
_SYMPTOMS: Final = frozenset({"E36", "E39", "E11"})  # the enclave did not come: by themselves no cause

_ALLOCATOR: Final = "/etc/nitro_enclaves/allocator.yaml and restart nitro-enclaves-allocator.service"
_HUGE_PAGES: Final = (
    "not enough free huge pages for the enclave's memory",
    f"raise memory_mib in {_ALLOCATOR}; in Kubernetes request hugepages and mount them; or lower the enclave's memory",
)
_EXPLANATIONS: Final[Mapping[str, tuple[str, str]]] = {
    "E19": (
        "a file could not be opened: the image, or /dev/nitro_enclaves",
        "check the image's path, that the instance has enclaves enabled, and that the container has the device",
    ),
    "E20": ("a CPU is named twice", "correct cpu_ids"),
    "E21": ("a CPU is not in the enclaves' pool", f"add it to cpu_pool in {_ALLOCATOR}"),
    "E22": ("the enclaves' CPU pool is too small", f"raise cpu_count in {_ALLOCATOR}, or lower the enclave's CPUs"),
    "E26": (
        "the memory asked for is less than the image needs",
        "give the enclave at least four times the image's size",
    ),
    "E27": _HUGE_PAGES,
    "E31": _HUGE_PAGES,
    "E35": (f"the image could not be loaded; most often {_HUGE_PAGES[0]}", f"{_HUGE_PAGES[1]}; else check the image"),
    "E32": ("a CPU could not be given to the enclave", "leave a whole core of the parent, and use full cores"),
    "E36": (
        "the enclave did not boot, or another launch was under way",
        "run it with debug = true and read nitro-cli console; check that the image's signature is still valid",
    ),
    "E58": ("the enclave's name is not valid", "use letters, digits, '-' and '_' only"),
}


class NitroCliError(SystemSetupError):
    """``nitro-cli`` failed, is missing, or said what cannot be understood.

    Args:
        what: What could not be done.
        codes: The codes it printed, in order; the first that names a cause is `error_code`.
        why: As for every error.
        fix: As for every error.
    """

    code = "WGV-E060"
    exit_code = 8

    def __init__(self, what: str, *, codes: Sequence[str] = (), why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.codes = tuple(codes)
        self.error_code = next((code for code in codes if code not in _SYMPTOMS), codes[0] if codes else "")


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to launch.

    Attributes:
        image: Path of the enclave image file.
        cpu_count: Virtual CPUs taken from the parent; even, where cores have two threads.
        memory_mib: Huge-page memory taken from the parent, in MiB.
        cid: Context identifier; None lets the tool choose.
        name: Of the enclave; None lets the tool take the image's.
        debug: Console readable, PCRs 0 to 2 zero: never in production.
    """

    image: str
    cpu_count: int
    memory_mib: int
    cid: Cid | None = None
    name: str | None = None
    debug: bool = False


@dataclass(frozen=True, slots=True)
class EnclaveInfo:
    """What the tool says of one enclave."""

    name: str
    enclave_id: str
    process_id: int
    cid: Cid
    state: str
    debug: bool
    cpu_count: int
    memory_mib: int

    @property
    def running(self) -> bool:
        """Whether it runs, as far as the parent can tell."""
        return self.state == "RUNNING"


class NitroCli:
    """The tool, one call at a time.

    Args:
        executable: Name on PATH, or path.
        lock_path: Shared by everything on this machine that launches enclaves.
        sleep: Lets seconds pass.
    """

    def __init__(
        self,
        executable: str = "nitro-cli",
        *,
        lock_path: str = "/run/wgvsock/nitro-cli.lock",
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._executable = executable
        self._lock_path = Path(lock_path)
        self._sleep = sleep

    async def run_enclave(self, request: RunRequest) -> EnclaveInfo:
        """Launch an enclave; a launch that only collided with another is tried again.

        Raises:
            NitroCliError: It could not be launched.
        """
        arguments = ["run-enclave", "--eif-path", request.image, "--cpu-count", str(request.cpu_count)]
        arguments += ["--memory", str(request.memory_mib)]
        if request.cid is not None:
            arguments += ["--enclave-cid", str(request.cid)]
        if request.name is not None:
            arguments += ["--enclave-name", request.name]
        if request.debug:
            arguments += ["--debug-mode"]
        what = f"launch an enclave from {request.image}"
        answer = _object(await self._launch(arguments, what), what)
        flags = "DEBUG_MODE" if request.debug else "NONE"
        return _enclave({"State": "RUNNING", "Flags": flags, **answer}, what)

    async def _launch(self, arguments: Sequence[str], what: str) -> Any:
        attempt = 1
        while True:
            try:
                async with self._lock():
                    return await self._call(arguments, what, RUN_DEADLINE)
            except NitroCliError as error:
                if attempt == RUN_ATTEMPTS or not error.codes or not _SYMPTOMS.issuperset(error.codes):
                    raise
            await self._sleep(FIRST_RETRY * 2 ** (attempt - 1))
            attempt += 1

    async def describe_enclaves(self) -> list[EnclaveInfo]:
        """Every enclave of this machine that our user may see.

        Raises:
            NitroCliError: The tool failed.
        """
        what = "list the enclaves"
        answer = await self._call(["describe-enclaves"], what, QUERY_DEADLINE)
        if not isinstance(answer, list):
            raise _unreadable(what)
        return [_enclave(_object(item, what), what) for item in answer]

    async def terminate_enclave(self, enclave_id: str) -> None:
        """End an enclave; one that is already gone is no error.

        Raises:
            NitroCliError: It is still there.
        """
        what = f"terminate the enclave {enclave_id}"
        try:
            answer = _object(
                await self._call(["terminate-enclave", "--enclave-id", enclave_id], what, QUERY_DEADLINE), what
            )
        except NitroCliError:
            if all(enclave.enclave_id != enclave_id for enclave in await self.describe_enclaves()):
                return
            raise
        if answer.get("Terminated") is not True:
            raise NitroCliError(f"cannot {what}", why="nitro-cli says that it was not terminated")

    async def measurements(self, image: str) -> dict[int, bytes]:
        """The PCRs of an image file, as ``describe-eif`` computes them: number -> 48 bytes.

        Raises:
            NitroCliError: The image cannot be read.
        """
        what = f"measure the image {image}"
        answer = _object(await self._call(["describe-eif", "--eif-path", image], what, RUN_DEADLINE), what)
        measured = answer.get("Measurements")
        if not isinstance(measured, dict):
            raise _unreadable(what)
        try:
            return {int(key[3:]): bytes.fromhex(value) for key, value in measured.items() if key.startswith("PCR")}
        except (ValueError, TypeError):
            raise _unreadable(what) from None

    @asynccontextmanager
    async def _lock(self) -> AsyncIterator[None]:
        """Hold the machine's launch lock (flock(2): it goes with its process, whatever happens to that)."""
        try:
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NitroCliError(f"cannot open the lock {self._lock_path}", why=str(error)) from None
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await self._sleep(_LOCK_POLL)
            yield
        finally:
            os.close(descriptor)

    async def _call(self, arguments: Sequence[str], what: str, deadline: float) -> Any:
        """Run the tool and return what its standard output says, parsed."""
        try:
            process = await asyncio.create_subprocess_exec(
                self._executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise NitroCliError(
                f"cannot {what}",
                why=f"{self._executable}: {error.strerror}",
                fix="install aws-nitro-enclaves-cli, or name its path in launch.nitro_cli",
            ) from None
        try:
            async with asyncio.timeout(deadline):
                stdout, stderr = await process.communicate()
        except TimeoutError:
            raise NitroCliError(f"cannot {what}", why=f"nitro-cli did not end within {deadline:.0f} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            raise translate(what, process.returncode, stderr.decode(errors="replace"))
        return _parse(stdout, what)


def translate(what: str, exit_code: int, stderr: str) -> NitroCliError:
    """The error for a call that failed: cause and remedy instead of the tool's page of text."""
    codes = list(dict.fromkeys(_CODE.findall(stderr)))
    cause = next((code for code in codes if code not in _SYMPTOMS), codes[0] if codes else "")
    default = (f"nitro-cli ended with {exit_code}", "see /var/log/nitro_enclaves on the parent instance")
    why, fix = _EXPLANATIONS.get(cause, default)
    names = ", ".join(codes) or "no error code"
    return NitroCliError(f"cannot {what}", codes=codes, why=f"{why} ({names})", fix=fix)


def _parse(stdout: bytes, what: str) -> Any:
    if len(stdout) > _LONGEST_OUTPUT:
        raise _unreadable(what)
    text = stdout.decode(errors="replace")
    start = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=len(text))
    try:
        return json.loads(text[start:])
    except ValueError:
        raise _unreadable(what) from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unreadable(what)
    return value


def _enclave(item: Mapping[str, Any], what: str) -> EnclaveInfo:
    try:
        return EnclaveInfo(
            name=str(item.get("EnclaveName", "")),
            enclave_id=str(item["EnclaveID"]),
            process_id=int(item.get("ProcessID", 0)),
            cid=Cid(int(item["EnclaveCID"])),
            state=str(item.get("State", "")),
            debug=str(item.get("Flags", "")) == "DEBUG_MODE",
            cpu_count=int(item.get("NumberOfCPUs", 0)),
            memory_mib=int(item.get("MemoryMiB", 0)),
        )
    except (KeyError, TypeError, ValueError):
        raise _unreadable(what) from None


def _unreadable(what: str) -> NitroCliError:
    return NitroCliError(
        f"cannot {what}",
        why="nitro-cli's answer is not what its version 1.x prints",
        fix="update aws-nitro-enclaves-cli",
    )
