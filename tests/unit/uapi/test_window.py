"""`wg show` works on relay and enclave, learns no secret, and changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.unit.service_pair import ServicePair
from wgvsock.testing import without_waiting


async def ask(path: Path, request: str) -> dict[str, list[str]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(request.encode())
    answer = (await reader.readuntil(b"\n\n")).decode()
    writer.close()
    found: dict[str, list[str]] = {}
    for line in answer.split():
        key, _, value = line.partition("=")
        found.setdefault(key, []).append(value)
    return found


@without_waiting
async def test_both_ends_are_shown_without_secrets_and_cannot_be_set(tmp_path: Path) -> None:
    pair = ServicePair(tmp_path)
    for machine, name in ((pair.machine, "r"), (pair.enclave_machine, "e")):
        machine.wg_folder = tmp_path / name
    await pair.up()
    peers = []
    for folder in ("r", "e"):
        path = tmp_path / folder / "wg0.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        found = await ask(path, "get=1\n\n")
        assert "private_key" not in found
        assert found["preshared_key"] == ["00" * 32]
        assert found["errno"] == ["0"]
        assert int(found["last_handshake_time_sec"][0]) > 0
        assert found["allowed_ip"]
        peers += found["public_key"]
        refused = await ask(path, "set=1\nreplace_peers=true\n\n")
        assert refused == {"errno": ["-1"]}
        assert (await ask(path, "get=1\n\n"))["public_key"] == found["public_key"]
    assert pair.relay.fleet.attendants[0].room.device.public_key is not None
    ours = pair.attendant.room.device.public_key
    assert peers[1] == (ours.hex() if ours else "")
    await pair.down()
    assert not list(tmp_path.glob("[re]/*.sock"))  # noqa: ASYNC240


@without_waiting
async def test_where_nobody_can_listen_nothing_is_missing_but_the_window(tmp_path: Path) -> None:
    pair = ServicePair(tmp_path)
    await pair.up()
    await pair.down()


@without_waiting
async def test_a_socket_that_is_deleted_is_missed_by_nobody_else(tmp_path: Path) -> None:
    pair = ServicePair(tmp_path)
    pair.machine.wg_folder = tmp_path / "r"
    await pair.up()
    (tmp_path / "r" / "wg0.sock").unlink()
    await asyncio.sleep(30)
    assert pair.is_ready()
    await pair.down()
