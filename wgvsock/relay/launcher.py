"""The enclave's life as the Relay sees it: adopted or launched, watched, launched again, terminated.

The launcher knows processes, not trust: what it launches is believed only when the attestation says the same EnclaveID
and its CID is the one that answered (`EnclaveInfo.enclave_id`, `EnclaveInfo.cid`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from wgvsock.addresses import Cid
from wgvsock.settings import Between
from wgvsock.system.nitro_cli import EnclaveInfo, NitroCli, RunRequest

FIRST_BACKOFF: Final = 1.0
LONGEST_BACKOFF: Final = 60.0
"""Seconds before an enclave that was lost is launched again: doubled each time, as an image that dies at boot would
otherwise keep its parent busy copying it into memory; the first again once one was provisioned (`Launcher.proved`)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """``[launch]``: what to launch, and what to do with what a crash of ours left running.

    Attributes:
        image: Path of the enclave image file.
        cpu_count: Virtual CPUs.
        memory_mib: Memory in MiB.
        name: The enclave's name; one relay owns one name on a machine.
        debug: Debug mode; its attestation is refused unless the policy allows it.
        leftover: An enclave of our name runs already when we start: go on with it, or end it and launch a fresh one.
        nitro_cli: The tool's name on PATH, or its path.
    """

    image: str
    cpu_count: Annotated[int, Between(1, 1024)] = 2
    memory_mib: Annotated[int, Between(64, 1 << 22)] = 512
    name: str = "wgvsock"
    debug: bool = False
    leftover: Literal["adopt", "terminate"] = "adopt"
    nitro_cli: str = "nitro-cli"


class Launcher:
    """One enclave.

    Args:
        settings: What to launch.
        cid: Context identifier that the enclave has to have; None lets nitro-cli choose.
        nitro_cli: The tool.
        sleep: Lets seconds pass.
    """

    def __init__(
        self,
        settings: LaunchSettings,
        cid: Cid | None,
        nitro_cli: NitroCli,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.enclave: EnclaveInfo | None = None
        self._settings = settings
        self._cid = cid
        self._nitro_cli = nitro_cli
        self._sleep = sleep
        self._backoff = FIRST_BACKOFF
        self._started = False

    async def start(self) -> EnclaveInfo:
        """The running enclave: adopted if one of our name is there and that is wanted, else launched.

        Raises:
            NitroCliError: It could not be launched, or what is left over could not be ended.
        """
        self._started = True
        for left in await self._ours():
            if self._adoptable(left):
                _log.info("adopted the running enclave %s (CID %d)", left.enclave_id, left.cid)
                self.enclave = left
                return left
            _log.info("terminating the enclave %s that an earlier run left", left.enclave_id)
            await self._nitro_cli.terminate_enclave(left.enclave_id)
        self.enclave = await self._nitro_cli.run_enclave(self._request())
        _log.info("launched the enclave %s (CID %d)", self.enclave.enclave_id, self.enclave.cid)
        return self.enclave

    async def is_running(self) -> bool:
        """Whether our enclave is still there.

        Raises:
            NitroCliError: The tool failed.
        """
        enclave = self.enclave
        return enclave is not None and any(
            one.enclave_id == enclave.enclave_id and one.running for one in await self._ours()
        )

    async def restart(self) -> EnclaveInfo:
        """Wait out the back-off, end what is left of the old enclave and launch a new one; it has another EnclaveID.

        Raises:
            NitroCliError: As `start`.
        """
        await self._sleep(self._backoff)
        self._backoff = min(2 * self._backoff, LONGEST_BACKOFF)
        await self.stop()
        return await self.start()

    def proved(self) -> None:
        """The enclave was attested and provisioned: the next loss is again a first one."""
        self._backoff = FIRST_BACKOFF

    async def stop(self) -> None:
        """Terminate the enclave; idempotent, and right after a `start` that was cancelled half-way.

        Raises:
            NitroCliError: It is still there.
        """
        if not self._started:
            return
        for ours in await self._ours():
            await self._nitro_cli.terminate_enclave(ours.enclave_id)
            _log.info("terminated the enclave %s", ours.enclave_id)
        self._started = False
        self.enclave = None

    def _request(self) -> RunRequest:
        settings = self._settings
        return RunRequest(
            settings.image, settings.cpu_count, settings.memory_mib, self._cid, settings.name, settings.debug
        )

    async def _ours(self) -> list[EnclaveInfo]:
        return [one for one in await self._nitro_cli.describe_enclaves() if one.name == self._settings.name]

    def _adoptable(self, left: EnclaveInfo) -> bool:
        """Only what we would have launched ourselves: another CID or another mode is not it."""
        same = left.running and left.debug == self._settings.debug and self._cid in {None, left.cid}
        return self._settings.leftover == "adopt" and same
