"""Answers questions about enclaves on the control socket, if the answer needs a measurement or a wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from wgvsock.egress.trial import parse_destination
from wgvsock.errors import ConfigurationError, WgvsockError
from wgvsock.machine.base import RelayMachine
from wgvsock.relay.enclaves import reach
from wgvsock.relay.enclaves.room import Room
from wgvsock.relay.fleet import Fleet
from wgvsock.relay.snapshots import RelaySnapshot
from wgvsock.relay.status import (
    egress_answer,
    lines_answer,
    name_refusal,
    ping_answer,
    reach_answer,
    signal_answer,
    trial_answer,
    trial_refusal,
)
from wgvsock.telemetry.endpoint import Answer

LOGS_PATIENCE: Final = 3.0
"""Seconds that a request for new lines may wait for one. This is shorter than the time limit of a request."""

MAX_LINES: Final = 500
"""Lines in one answer. All lines of an enclave take at most 3 MB as JSON. A client accepts 4 MB (`MAX_ANSWER`)."""

MAX_DIGITS: Final = 16  # in the number of a line


class Inquiries:
    """Answers questions about the enclaves of one relay.

    Args:
        fleet: The enclaves.
        machine: The machine that the relay runs on.
        snapshot: Returns the relay's state at this moment.
    """

    def __init__(self, fleet: Fleet, machine: RelayMachine, snapshot: Callable[[], RelaySnapshot]) -> None:
        self._fleet = fleet
        self._machine = machine
        self._snapshot = snapshot

    def rooms(self) -> dict[str, Room]:
        """The rooms that are open, by the enclave's name."""
        rooms = {name: member.attendant.room for name, member in self._fleet.members.items()}
        return {name: room for name, room in rooms.items() if room.is_open}

    async def ping(self, query: Mapping[str, str]) -> Answer:
        """Test every layer of an enclave's tunnel once.

        Args:
            query: ``enclave`` names the enclave. It may be omitted if there is only one.
        """
        name, room = self._named(query)
        return name_refusal(self.rooms()) if room is None else ping_answer(name, await room.ping())

    async def look_beyond(self, query: Mapping[str, str]) -> Answer:
        """Test the name servers and one destination once, from this machine.

        Args:
            query: ``enclave`` as for `ping`; ``world`` is the destination, ``HOST:PORT``.
        """
        name, room = self._named(query)
        if room is None:
            return name_refusal(self.rooms())
        try:
            destination = parse_destination(query["world"], "tcp") if query.get("world") else None
        except ConfigurationError as error:
            return trial_refusal(error)
        judge = room.uplink.egress.outcomes
        return reach_answer(name, await reach.look(self._machine, room.spec, destination, judge))

    async def logs(self, query: Mapping[str, str]) -> Answer:
        """The output of an enclave's application.

        Args:
            query: ``enclave`` as for `ping`; ``after`` is the number of the last line that the client has, and
                ``wait=1`` asks to wait for a while if there is no later line.
        """
        name, room = self._named(query)
        if room is None:
            return name_refusal(self.rooms())
        after, record = query.get("after", "0"), room.application
        number = int(after) if after.isdecimal() and len(after) < MAX_DIGITS else 0
        patience = LOGS_PATIENCE if query.get("wait") == "1" else 0.0
        end = self._machine.monotonic() + patience
        while record.last_line == number and (left := end - self._machine.monotonic()) > 0:
            await room.reports.arrival(left)
        lines = record.lines_after(number if number <= record.last_line else 0, MAX_LINES)
        return lines_answer(name, lines, lines[-1].number if lines else record.last_line)

    async def signal(self, query: Mapping[str, str]) -> Answer:
        """Send a signal to an enclave's application, if its image permits that.

        Args:
            query: ``enclave`` as for `ping`; ``name`` is the name of the signal, such as ``HUP``.
        """
        _, room = self._named(query)
        if room is None:
            return name_refusal(self.rooms())
        try:
            sent, why = await room.reports.send_signal(query.get("name", ""))
        except WgvsockError as error:
            sent, why = False, str(error)
        return signal_answer(sent=sent, why=why)

    def _named(self, query: Mapping[str, str]) -> tuple[str, Room | None]:
        rooms = self.rooms()
        name = query.get("enclave") or (next(iter(rooms)) if len(rooms) == 1 else "")
        return name, rooms.get(name)

    async def egress(self, query: Mapping[str, str]) -> Answer:
        """What enclaves may reach and what they tried to reach, at this moment.

        Args:
            query: ``enclave`` restricts the answer to one enclave.
        """
        for attendant in self._fleet.attendants:
            if attendant.room.is_open:
                await attendant.room.uplink.egress.look()
        return egress_answer(self._snapshot(), query.get("enclave", ""))

    async def try_egress(self, query: Mapping[str, str]) -> Answer:
        """Predict the verdict on a flow, by the policies in force and the addresses that names have now.

        Args:
            query: ``destination`` and ``protocol``; ``enclave`` restricts the answer to one enclave.
        """
        try:
            destination = parse_destination(query.get("destination", ""), query.get("protocol", "tcp"))
        except ConfigurationError as error:
            return trial_refusal(error)
        wanted = query.get("enclave", "")
        rooms = {name: room for name, room in self.rooms().items() if wanted in {"", name}}
        found = {name: room.uplink.egress.outcomes(destination) for name, room in rooms.items()}
        return trial_answer(found) if found else name_refusal(self._fleet.members)
