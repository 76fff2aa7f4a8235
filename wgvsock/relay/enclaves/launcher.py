"""The life cycle of an enclave: adopted or launched, watched, launched again, terminated.

The launcher deals with processes, not with trust. The relay trusts a launched enclave only if the attestation contains
its EnclaveID and the connection leads to its CID (`EnclaveInfo.enclave_id`, `EnclaveInfo.cid`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from wgvsock.relay.sections import LaunchSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.runtime.backoff import Backoff
from wgvsock.system.nitro_cli import EnclaveInfo, Listing, NitroCli, RunRequest

FIRST_BACKOFF: Final = 1.0
LONGEST_BACKOFF: Final = 60.0
"""Seconds before a lost enclave is launched again. The delay doubles each time, because an image that dies at boot
would otherwise keep the parent busy copying it into memory. It is reset once an enclave was provisioned
(`Launcher.proved`)."""

_log = logging.getLogger(__name__)


class Launcher:
    """Launches one enclave.

    Args:
        spec: The enclave's specification.
        nitro_cli: Runs nitro-cli.
        sleep: Sleeps for a number of seconds.
    """

    def __init__(
        self,
        spec: EnclaveSpec,
        nitro_cli: NitroCli,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.enclave: EnclaveInfo | None = None
        assert spec.launch is not None  # noqa: S101 - otherwise there is nothing to launch
        self._settings: LaunchSettings = spec.launch
        self._name = spec.launch_name
        self._cid = spec.cid
        self._nitro_cli = nitro_cli
        self._sleep = sleep
        self._backoff = Backoff(lambda: 0.0, first=FIRST_BACKOFF, longest=LONGEST_BACKOFF)
        self._started = False

    async def start(self) -> EnclaveInfo:
        """Adopt the running enclave with our name if the settings permit that, and otherwise launch one.

        Raises:
            NitroCliError: The enclave could not be launched, or a leftover one could not be terminated.
        """
        self._started = True
        listing = await self._list()
        for left in listing.enclaves:
            if self._adoptable(left):
                _log.info("adopted the running enclave %s (CID %d)", left.enclave_id, left.cid)
                self.enclave = left
                return left
            _log.info("terminating the enclave %s that an earlier run left", left.enclave_id)
            await self._nitro_cli.terminate_enclave(left.enclave_id)
        listing.complete()  # a second enclave would get another name, and never be found
        self.enclave = await self._nitro_cli.run_enclave(self._request())
        _log.info("launched the enclave %s (CID %d)", self.enclave.enclave_id, self.enclave.cid)
        return self.enclave

    async def has_leftover(self) -> bool:
        """Whether an enclave with our name runs that this process has not started.

        Raises:
            NitroCliError: nitro-cli failed and listed no enclave, so the answer is unknown.
        """
        listing = await self._list()
        if not listing.enclaves:
            listing.complete()
        return any(left.running for left in listing.enclaves)

    async def end_leftover(self) -> None:
        """Terminate the enclaves with our name that an earlier run left.

        Raises:
            NitroCliError: An enclave still runs, or nitro-cli failed.
        """
        self._started = True
        await self.stop()

    async def is_running(self) -> bool:
        """Whether our enclave still runs.

        Raises:
            NitroCliError: nitro-cli failed and did not list the enclave, so the answer is unknown.
        """
        if self.enclave is None:
            return False
        listing = await self._list()
        ours = [one for one in listing.enclaves if one.enclave_id == self.enclave.enclave_id]
        if not ours:
            listing.complete()
        return any(one.running for one in ours)

    async def restart(self) -> EnclaveInfo:
        """Wait for the back-off delay, terminate the old enclave and launch a new one, which has another EnclaveID.

        Raises:
            NitroCliError: See `start`.
        """
        await self._sleep(self._backoff.next_delay())
        await self.stop()
        return await self.start()

    def proved(self) -> None:
        """Reset the back-off, because the enclave was attested and provisioned."""
        self._backoff = Backoff(lambda: 0.0, first=FIRST_BACKOFF, longest=LONGEST_BACKOFF)

    async def stop(self) -> None:
        """Terminate the enclave. Idempotent, and correct even after a `start` that was cancelled.

        Raises:
            NitroCliError: An enclave still runs, or nitro-cli failed.
        """
        if not self._started:
            return
        listing = await self._list()
        for ours in listing.enclaves:
            await self._nitro_cli.terminate_enclave(ours.enclave_id)
            _log.info("terminated the enclave %s", ours.enclave_id)
        listing.complete()
        self._started = False
        self.enclave = None

    def _request(self) -> RunRequest:
        settings = self._settings
        return RunRequest(
            settings.image, settings.cpu_count, settings.memory_mib, self._cid, self._name, settings.debug
        )

    async def _list(self) -> Listing:
        return await self._nitro_cli.describe_enclaves(self._name)

    def _adoptable(self, left: EnclaveInfo) -> bool:
        """Whether an enclave may be adopted: it has the CID and the debug mode that a launch would give it."""
        same = left.running and left.debug == self._settings.debug and self._cid in {None, left.cid}
        return self._settings.leftover == "adopt" and same
