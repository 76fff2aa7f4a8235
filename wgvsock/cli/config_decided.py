"""What a relay would decide on this machine now, where its configuration leaves the choice open."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from wgvsock.errors import WgvsockError
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.enclaves.interface import find_uplink, make_tunnel_config
from wgvsock.relay.enclaves.names import forwards, upstreams
from wgvsock.relay.enclaves.signing import signing_key_path
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.system import resolver
from wgvsock.system.netlink import open_netlink

LAUNCHED: Final = "the launched enclave's"


def decide(config: Any) -> dict[str, dict[str, Any]]:
    """The decisions for each enclave, or the reason why one cannot be made here."""
    if not isinstance(config, RelayConfig):
        return {}  # an enclave gets its settings from its relay
    return asyncio.run(_decide(config))


async def _decide(config: RelayConfig) -> dict[str, dict[str, Any]]:
    return {spec.name: await _facts(config, spec) for spec in config.specs()}


async def _facts(config: RelayConfig, spec: EnclaveSpec) -> dict[str, Any]:
    where = spec.enclave.waits_for_cid
    facts: dict[str, Any] = {
        "control socket": config.control_socket().path,
        "signing key": str(signing_key_path(spec)),
        "interface": spec.interface.name,
        "address": LAUNCHED if where else str(spec.enclave.address),
        "provisioning address": LAUNCHED if where else str(spec.enclave.provisioning()),
        "relay addresses": _listed(spec.interface.addresses),
        "enclave addresses": _listed(spec.enclave.addresses),
    }
    try:
        own = resolver.read()
        async with open_netlink(lambda undo: undo) as netlink:
            uplink = await find_uplink(netlink, spec.nat.uplink)
        tunnel = make_tunnel_config(spec, uplink, own)
    except WgvsockError as error:
        return {**facts, "uplink": f"none on this machine: {error.why or error.what}"}
    return {
        **facts,
        "uplink": uplink.name,
        "mtu": tunnel.mtu,
        "routes": _listed(tunnel.allowed_ips),
        "name servers": _listed(tunnel.nameservers) or "none",
        "looked up by": "the relay" if forwards(spec, own) else "the enclave",
        "asked in the end": _listed(upstreams(spec, own)) or "nobody",
        "search domains": _listed(tunnel.search) or "none",
    }


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))
