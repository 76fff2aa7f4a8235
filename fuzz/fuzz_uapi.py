"""For any bytes in any chunks, the control socket answers, and its state, set on a new device, gives the same state.

Only UapiError refuses a request, and only RemoteProtocolError ends a connection.

    python fuzz/fuzz_uapi.py -max_total_time=60
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["wgvsock.uapi", "wgvsock.addresses"]):
    from wgvsock.errors import RemoteProtocolError
    from wgvsock.uapi.control import DeviceControl
    from wgvsock.uapi.endpoints import Carrier, EndpointText
    from wgvsock.uapi.errors import UapiError
    from wgvsock.uapi.protocol import DeviceChange, RejectedRequest, RequestReader, format_state
    from wgvsock.wireguard import Device

READ_ONLY = ("last_handshake_time", "rx_bytes", "tx_bytes")

# Words that mutations should reach immediately.
PREFIXES = (
    b"",
    b"set=1\n",
    b"set=1\npublic_key=" + b"ab" * 32 + b"\n",
    b"set=1\npublic_key=" + b"ab" * 32 + b"\nendpoint=",
    b"set=1\npublic_key=" + b"ab" * 32 + b"\nallowed_ip=",
    b"set=1\nprivate_key=" + b"cd" * 32 + b"\nlisten_port=1\nfwmark=2\npublic_key=" + b"ab" * 32 + b"\n",
)


class Sockets:
    """Accepts everything."""

    listen_port = 0
    fwmark = 0

    async def set_listen_port(self, port: int) -> None:
        """See `wgvsock.uapi.control.Sockets`."""
        self.listen_port = port

    def set_fwmark(self, mark: int) -> None:
        """See `wgvsock.uapi.control.Sockets`."""
        self.fwmark = mark


def new_control(carrier: Carrier) -> DeviceControl:
    """Return the control of a device without peers."""
    count = iter(range(1 << 30))

    def random(size: int) -> bytes:
        return next(count).to_bytes(8, "little").ljust(size, b"\0")[:size]

    device = Device(random=random, wall_clock=lambda: 0)
    return DeviceControl(device, Sockets(), EndpointText(carrier), clock=lambda: 0.0, on_changed=lambda: None)


async def serve(control: DeviceControl, data: bytes, chunk: int) -> list[str]:
    """Return the outcomes of a connection that sends these bytes."""
    reader, outcome = RequestReader(), []
    for start in range(0, len(data), chunk):
        reader.receive(data[start : start + chunk])
        try:
            while (request := reader.next_request()) is not None:
                outcome.append(repr(request))
                if isinstance(request, DeviceChange):
                    with contextlib.suppress(UapiError):
                        await control.apply(request)
                elif isinstance(request, RejectedRequest):
                    assert request.error.errno > 0
        except RemoteProtocolError:
            outcome.append("closed")
            break
    return outcome


def settings(control: DeviceControl) -> list[str]:
    """Return the answer to a get request, without the lines that cannot be set."""
    return [line for line in format_state(control.state()).decode().splitlines() if not line.startswith(READ_ONLY)]


async def check(data: bytes, carrier: Carrier, chunk: int) -> None:
    """Check the two invariants."""
    whole, cut = new_control(carrier), new_control(carrier)
    assert await serve(whole, data, len(data) or 1) == await serve(cut, data, chunk)
    shown = settings(whole)
    assert shown == settings(cut)
    again = new_control(carrier)
    await serve(again, "\n".join(["set=1", *shown, "", ""]).encode(), chunk)
    assert settings(again) == shown


def test_one_input(data: bytes) -> None:
    """Run one request. The first three bytes select the carrier, the chunks and the beginning of the request."""
    if len(data) < 3:
        return
    carrier = [*Carrier][data[0] % len(Carrier)]
    request = PREFIXES[data[2] % len(PREFIXES)] + data[3:]
    asyncio.run(check(request + b"\n\n", carrier, data[1] + 1))


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
