"""Finds configuration errors that would stop a relay only when it runs, by doing beforehand what ``run`` does.

The checks are those of the parts themselves, such as `make_tunnel_config` and `load_signing_seed`. Each gets one part
of the file at a time, so that an error names the key. Files that the configuration names are checked only if they
exist, because a configuration may be checked on another machine than the relay's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from wgvsock.errors import ConfigurationError, WgvsockError
from wgvsock.relay.config import RelayConfig
from wgvsock.relay.enclaves.interface import Uplink, make_tunnel_config, refuse_overlap, refuse_own_servers
from wgvsock.relay.enclaves.signing import load_signing_seed
from wgvsock.relay.sections import DnsSettings
from wgvsock.relay.spec import EnclaveSpec
from wgvsock.settings import Advice, KeyPath
from wgvsock.system.netlink import Netlink
from wgvsock.system.resolver import ResolverSettings

_ANY_UPLINK: Final = Uplink(interfaces=(), mtu=1500, versions=frozenset({4, 6}))
_NO_RESOLVER: Final = ResolverSettings()

_MAX_SOCKET_PATH: Final = 107
"""Bytes of sockaddr_un.sun_path, without the zero at its end (unix(7))."""

_TAKEN: Final = frozenset({"lo", "all", "default"})
"""Reserved interface names: the loopback interface, and the names that mean every interface in /proc/sys/net."""


def rehearse(config: RelayConfig) -> tuple[Advice, ...]:
    """Find what would stop the relay, in the order of the enclaves. A shared table is reported only once."""
    found: dict[Advice, None] = {}
    socket = config.control_socket().path
    if len(socket.encode()) > _MAX_SOCKET_PATH:
        found[
            Advice(
                ("runtime_directory",),
                "the control socket cannot be created",
                why=f"its path has {len(socket.encode())} bytes, and the limit is {_MAX_SOCKET_PATH}",
                fix="choose a shorter runtime_directory or name",
            )
        ] = None
    for position, spec in enumerate(config.specs()):
        own = _own_tables(config, position)
        found |= dict.fromkeys(_rehearse(spec, own))
    return tuple(found)


async def rehearse_here(config: RelayConfig, netlink: Netlink) -> tuple[Advice, ...]:
    """Find what would stop the relay on this machine only: tunnel prefixes that are already in use here.

    Raises:
        NetlinkSetupError: The addresses cannot be read.
    """
    found: dict[Advice, None] = {}
    for position, spec in enumerate(config.specs()):
        try:
            await refuse_overlap(netlink, spec, make_tunnel_config(_bare(spec), _ANY_UPLINK, _NO_RESOLVER))
        except ConfigurationError as error:
            key = (*_own_tables(config, position)("enclave"), "addresses")
            found[Advice(key, f"on this machine {error.what}", error.why, error.fix)] = None
    return tuple(found)


def _bare(spec: EnclaveSpec) -> EnclaveSpec:
    """A copy without DNS settings and routes, but with the enclave's addresses."""
    dns = DnsSettings(servers=(), search=(), options=())
    return replace(spec, dns=dns, enclave=replace(spec.enclave, routes=()))


def _rehearse(spec: EnclaveSpec, own: Callable[[str], KeyPath]) -> Iterator[Advice]:
    yield from _placeholders(spec, own("attestation"))
    if spec.interface.name in _TAKEN:
        yield Advice(
            own("interface"),
            f"the tunnel's interface cannot be named {spec.interface.name}",
            why="the kernel reserves this name",
            fix='choose another, such as "wg0"',
        )
    bare = _bare(spec)
    enclave, dns = own("enclave"), own("dns")
    tunnel = _refusal(lambda: make_tunnel_config(bare, _ANY_UPLINK, _NO_RESOLVER), (*enclave, "addresses"))
    if tunnel is not None:
        yield tunnel  # the other checks need a valid tunnel
        return
    parts: dict[KeyPath, EnclaveSpec] = {
        (*enclave, "routes"): replace(bare, enclave=spec.enclave),
        (*dns, "search"): replace(bare, dns=replace(bare.dns, search=spec.dns.search or ())),
        (*dns, "options"): replace(bare, dns=replace(bare.dns, options=spec.dns.options or ())),
        (*dns, "servers"): replace(bare, dns=replace(spec.dns, search=(), options=())),
    }
    for key, part in parts.items():
        refusal = _refusal(lambda part=part: _tell_enclave(part), key)  # type: ignore[misc]
        if refusal is not None:
            yield refusal
    if spec.provisioning.signing_key_file is not None and Path(spec.provisioning.signing_key_file).exists():
        key = own("signing_key_file") or ("provisioning", "signing_key_file")
        refusal = _refusal(lambda: load_signing_seed(spec, bytes), key)
        if refusal is not None:
            yield refusal


def _tell_enclave(spec: EnclaveSpec) -> None:
    refuse_own_servers(spec, make_tunnel_config(spec, _ANY_UPLINK, _NO_RESOLVER))


def _placeholders(spec: EnclaveSpec, where: KeyPath) -> Iterator[Advice]:
    if spec.attestation.allow_debug:
        return
    for position, entry in enumerate(spec.attestation.pcr_sets):
        zeros = [f"pcr{index}" for index, value in entry.pcr_set().values.items() if not any(value)]
        if zeros:
            yield Advice(
                (*where, "pcr_sets", position, zeros[0]),
                "this set of measurements matches no enclave",
                why=f"{', '.join(zeros)} is zero, which is a placeholder",
                fix="write what nitro-cli build-enclave printed: wgvsock config init relay --pcrs FILE",
            )


def _refusal(attempt: Callable[[], object], key: KeyPath) -> Advice | None:
    try:
        attempt()
    except ConfigurationError as error:
        return Advice(key, error.what, error.why, error.fix)
    except WgvsockError as error:
        return Advice(key, str(error), error.why, error.fix)
    return None


def _own_tables(config: RelayConfig, position: int) -> Callable[[str], KeyPath]:
    """Where an enclave's table is in the file: its own table, or the one that all enclaves share."""
    if not config.enclaves:
        return lambda table: {"signing_key_file": (), "interface": ("interface", "name")}.get(table, (table,))
    entry = config.enclaves[position]

    def own(table: str) -> KeyPath:
        here: KeyPath = ("enclaves", position)
        if table == "enclave":
            return here
        if table == "interface":
            return (*here, table)
        if table == "signing_key_file":
            return (*here, table) if entry.signing_key_file else ()
        return (*here, table) if getattr(entry, table) is not None else (table,)

    return own
