"""The tool's commands, one call at a time."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wgvsock.addresses import Cid
from wgvsock.runtime import private
from wgvsock.runtime.directory import RUNTIME_DIRECTORY
from wgvsock.system.nitro_cli.answers import EnclaveInfo, Listing, json_object, read_enclave, read_measurements
from wgvsock.system.nitro_cli.errors import NitroCliError, unreadable
from wgvsock.system.nitro_cli.process import call

RUN_DEADLINE: Final = 180.0
"""Seconds for ``run-enclave`` and ``describe-eif``. ``run-enclave`` copies the image into huge pages and waits for the
boot heartbeat."""

QUERY_DEADLINE: Final = 30.0
"""Seconds for every other command. ``describe-enclaves`` itself gives up on a silent enclave after 3."""

RUN_ATTEMPTS: Final = 5
FIRST_RETRY: Final = 1.0
"""Seconds before the second attempt, doubled for each further one. Another launch takes a few seconds."""

_LOCK_POLL: Final = 0.2  # seconds between two tries for the lock

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to launch.

    Attributes:
        image: Path of the enclave image file.
        cpu_count: Virtual CPUs taken from the parent. An even number if cores have two threads.
        memory_mib: Huge-page memory taken from the parent, in MiB.
        cid: Context identifier, or None to let the tool choose.
        name: Name of the enclave, or None to let the tool use the image's.
        debug: Make the console readable, which zeroes PCRs 0 to 2. Never use it in production.
    """

    image: str
    cpu_count: int
    memory_mib: int
    cid: Cid | None = None
    name: str | None = None
    debug: bool = False


class NitroCli:
    """The tool, one call at a time.

    Args:
        executable: Name on PATH, or path.
        lock_path: Lock file, shared by everything on this machine that launches enclaves.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        executable: str = "nitro-cli",
        *,
        lock_path: str = f"{RUNTIME_DIRECTORY}/nitro-cli.lock",
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._executable = executable
        self._lock_path = Path(lock_path)
        self._sleep = sleep

    async def run_enclave(self, request: RunRequest) -> EnclaveInfo:
        """Launch an enclave. A launch that only collided with another one is retried.

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
        flags = "DEBUG_MODE" if request.debug else "NONE"
        attempt = 1
        while True:
            async with self._lock():
                answer = await call(self._executable, arguments, what, RUN_DEADLINE)
            failure = answer.failure
            if failure is None or (isinstance(answer.value, dict) and "EnclaveID" in answer.value):
                launched = read_enclave({"State": "RUNNING", "Flags": flags, **json_object(answer.value, what)}, what)
                if failure is not None:
                    await self._confirm(launched, failure)
                return launched
            if attempt == RUN_ATTEMPTS or not failure.only_symptoms:
                raise failure
            await self._sleep(FIRST_RETRY * 2 ** (attempt - 1))
            attempt += 1

    async def _confirm(self, launched: EnclaveInfo, failure: NitroCliError) -> None:
        """Check that an enclave is running although the tool failed after describing it."""
        listing = await self.describe_enclaves()
        if not any(one.enclave_id == launched.enclave_id and one.running for one in listing.enclaves):
            raise failure
        _log.warning("nitro-cli launched the enclave %s but reported a failure: %s", launched.enclave_id, failure.why)

    async def describe_enclaves(self, name: str | None = None) -> Listing:
        """List the enclaves of this machine that our user may see.

        Args:
            name: List only enclaves with this name. The answer about others is then not checked, so that it cannot
                cause an error.

        Raises:
            NitroCliError: The tool failed and listed nothing, or its list cannot be understood.
        """
        what = "list the enclaves"
        answer = await call(self._executable, ["describe-enclaves"], what, QUERY_DEADLINE)
        if not isinstance(answer.value, list):
            raise answer.failure or unreadable(what)
        items = [json_object(item, what) for item in answer.value]
        wanted = [item for item in items if name is None or item.get("EnclaveName") == name]
        return Listing(tuple(read_enclave(item, what) for item in wanted), answer.failure)

    async def terminate_enclave(self, enclave_id: str) -> None:
        """Terminate an enclave. It is not an error if it is already gone.

        Raises:
            NitroCliError: The enclave is, or may be, still running.
        """
        what = f"terminate the enclave {enclave_id}"
        try:
            answer = await call(
                self._executable, ["terminate-enclave", "--enclave-id", enclave_id], what, QUERY_DEADLINE
            )
            failure = answer.failure
        except NitroCliError as error:
            failure = error
        if failure is not None:
            listing = await self.describe_enclaves()
            if any(enclave.enclave_id == enclave_id for enclave in listing.enclaves):
                raise failure
            listing.complete()
        elif json_object(answer.value, what).get("Terminated") is not True:
            raise NitroCliError(f"cannot {what}", why="nitro-cli says that it was not terminated")

    async def measurements(self, image: str) -> dict[int, bytes]:
        """Measure an image file with ``describe-eif``.

        Returns:
            48 bytes by PCR number.

        Raises:
            NitroCliError: The image cannot be read.
        """
        what = f"measure the image {image}"
        answer = await call(self._executable, ["describe-eif", "--eif-path", image], what, RUN_DEADLINE)
        if answer.failure is not None:
            raise answer.failure
        return read_measurements(answer.value, what)

    @asynccontextmanager
    async def _lock(self) -> AsyncIterator[None]:
        """Hold the machine's launch lock. It is released when the process ends, whatever the reason (flock(2))."""
        try:
            private.make_directory(self._lock_path.parent)
            descriptor = private.open_lock(self._lock_path)
        except OSError as error:
            why, fix = private.why(error), private.fix(error, "make its directory writable for this user")
            raise NitroCliError(f"cannot open the lock {self._lock_path}", why=why, fix=fix) from None
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
