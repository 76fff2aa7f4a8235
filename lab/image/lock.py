"""``python -m lab.image.lock``: renews ``packages.json`` from the archive's package lists.

Works in a private apt folder and never touches the machine's sources. ``Check-Valid-Until=false`` is set because a
mirror's Release file may have expired. Signatures are still checked.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from lab.image.packages import LOCK_FILE

ARCHIVE: Final = "http://deb.debian.org/debian"
SNAPSHOT: Final = "http://snapshot.debian.org/archive/debian/20261123T000000Z"
"""Where a package is still found after it left the archive."""

_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SUITES: Final = ("bookworm", "bookworm-backports", "trixie", "trixie-backports", "forky")
_QEMU: Final = "1:10.0.2+ds-2+deb13u1~bpo12+1"
_QEMU_VIRTIO: Final = "1:11.1.3+ds-1~bpo13+1"
_KERNEL: Final = "6.12.95-1~bpo12+1"

_HOST_LIBRARIES: Final = (
    *("libaio1", "libblkid1", "libbpf1", "libc6", "libcap2", "libcapstone4", "libdaxctl1", "libelf1"),
    *("libfdt1", "libffi8", "libfuse3-3", "libgcc-s1", "libglib2.0-0", "libgmp10", "libgnutls30", "libhogweed6"),
    *("libibverbs1", "libidn2-0", "libjpeg62-turbo", "libkmod2", "liblz4-1", "liblzma5", "libmount1", "libndctl6"),
    *(
        "libnettle8",
        "libnl-3-200",
        "libnl-route-3-200",
        "libnuma1",
        "libp11-kit0",
        "libpcre2-8-0",
        "libpixman-1-0",
        "libpmem1",
    ),
    *("libpng16-16", "librdmacm1", "libsasl2-2", "libseccomp2", "libselinux1", "libslirp0", "libssl3", "libstdc++6"),
    *("libtasn1-6", "libudev1", "libunistring2", "liburing2", "libuuid1", "libvdeplug2", "libzstd1", "zlib1g"),
)
_HOST_VIRTIO_LIBRARIES: Final = (
    *("libaio1t64", "libatomic1", "libblkid1", "libbpf1", "libc6", "libcap2", "libcapstone5", "libdaxctl1"),
    *("libelf1t64", "libfdt1", "libffi8", "libfuse3-4", "libgcc-s1", "libglib2.0-0t64", "libgmp10", "libgnutls30t64"),
    *("libhogweed6t64", "libibverbs1", "libidn2-0", "libjpeg62-turbo", "libkmod2", "libmount1", "libndctl6"),
    *("libnettle8t64", "libnl-3-200", "libnl-route-3-200", "libnuma1", "libp11-kit0", "libpcre2-8-0"),
    *("libpixman-1-0", "libpmem1", "libpng16-16t64", "librdmacm1t64", "libsasl2-2", "libseccomp2", "libselinux1"),
    *("libslirp0", "libssl3t64", "libtasn1-6", "libudev1", "libunistring5", "liburing2", "libuuid1"),
    *("libvdeplug2t64", "libzstd1", "zlib1g"),
)
_GUEST: Final = (
    *(
        "busybox-static",
        "dash",
        "python3.11-minimal",
        "libpython3.11-minimal",
        "libpython3.11-stdlib",
        "libc6",
        "zlib1g",
    ),
    *("libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1", "libgcc-s1", "libsqlite3-0"),
    *(
        "iptables",
        "nftables",
        "libnftables1",
        "libnftnl11",
        "libmnl0",
        "libxtables12",
        "libjansson4",
        "libgmp10",
        "libedit2",
    ),
    *("libip4tc2", "libip6tc2", "libnetfilter-conntrack3", "libnfnetlink0", "libbsd0", "libmd0", "libtinfo6"),
    *("iproute2", "libelf1", "libbpf1", "libcap2", "wireguard-tools", "ethtool"),
    *("libslirp0", "libglib2.0-0", "libpcre2-8-0"),  # the user-space uplink
)

# QEMU 7.2 with a 6.12 kernel oopses at random under TCG. 10.0.2 with the 6.12 cloud kernel does not (docs/lab.md).
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "host": (
        *(f"{name}={_QEMU}" for name in ("qemu-system-x86", "qemu-system-common", "qemu-system-data")),
        "seabios/bookworm-backports",
        "vhost-device-vsock=0.3.0-2",
        "zstd/bookworm",
        *(f"{name}/bookworm" for name in _HOST_LIBRARIES),
    ),
    # The first QEMU in which another process can provide any kind of device (vhost-user-test-device-pci): `lab.virtio`.
    "host-virtio": (
        *(f"{name}={_QEMU_VIRTIO}" for name in ("qemu-system-x86", "qemu-system-common", "qemu-system-data")),
        "seabios/trixie",
        "vhost-device-vsock=0.3.0-2",
        *(f"{name}/trixie" for name in _HOST_VIRTIO_LIBRARIES),
    ),
    "kernel": (f"linux-image-6.12.95+deb12-cloud-amd64={_KERNEL}",),
    "guest": tuple(f"{name}/bookworm" for name in _GUEST),
}


def main() -> int:
    """Resolve every name of `GROUPS` and write the lock file."""
    with tempfile.TemporaryDirectory(prefix="wgvsock-lock-") as folder:
        root = Path(folder)
        for name in ("lists/partial", "cache/archives/partial"):
            (root / name).mkdir(parents=True)
        (root / "status").touch()
        lines = (f"deb [signed-by={_KEYRING} check-valid-until=no] {ARCHIVE} {suite} main\n" for suite in _SUITES)
        (root / "sources.list").write_text("".join(lines))
        options = [
            *("-o", f"Dir::Etc::sourcelist={root}/sources.list", "-o", "Dir::Etc::sourceparts=/dev/null"),
            *("-o", f"Dir::State::lists={root}/lists", "-o", f"Dir::State::status={root}/status"),
            *("-o", f"Dir::Cache={root}/cache", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"),
            *("-o", "Acquire::Check-Valid-Until=false"),
        ]
        subprocess.run(["apt-get", *options, "update", "-qq"], check=True)
        groups = {group: _resolve(options, names) for group, names in GROUPS.items()}
    LOCK_FILE.write_text(json.dumps({"archives": [ARCHIVE, SNAPSHOT], "groups": groups}, indent=1) + "\n")
    return 0


def _resolve(options: list[str], names: tuple[str, ...]) -> list[dict[str, str | int]]:
    """Parse the packages' records from apt's output, one per line: ``'URL' file size SHA256:hex``."""
    command = ["apt-get", *options, "--print-uris", "download", *names]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    records = [_record(line) for line in lines if line.startswith("'")]
    return sorted(records, key=lambda record: str(record["name"]))


def _record(line: str) -> dict[str, str | int]:
    url, file_name, size, digest = line.split()
    package, version, _ = file_name.replace("%3a", ":").split("_")
    path = url.strip("'").removeprefix(f"{ARCHIVE}/")
    return {
        "name": package,
        "version": version,
        "path": path,
        "sha256": digest.removeprefix("SHA256:"),
        "size": int(size),
    }


if __name__ == "__main__":
    raise SystemExit(main())
