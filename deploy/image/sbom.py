"""``sbom.py ROOTFS.tar --name NAME --version VERSION``: an image's contents, as CycloneDX 1.6 JSON on standard output.

It reads only the archive: Debian's packages from ``var/lib/dpkg/status.d``, Python's from their ``METADATA``. The same
archive gives the same bytes, so the output contains neither a time nor a random serial number.
"""

from __future__ import annotations

import argparse
import email.parser
import hashlib
import json
import sys
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

DISTRIBUTION = "debian-12"


def components(archive: tarfile.TarFile) -> Iterator[dict[str, Any]]:
    """Yield each package once, with its package URL (https://github.com/package-url/purl-spec)."""
    for member in archive.getmembers():
        path = member.name.removeprefix("./")
        if path.startswith("var/lib/dpkg/status.d/") and member.isfile():
            fields = _fields(archive, member)
            name, version = fields["Package"], fields["Version"]
            qualifiers = f"arch={fields['Architecture']}&distro={DISTRIBUTION}"
            yield _component(name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}?{qualifiers}")
        elif path.endswith(".dist-info/METADATA"):
            fields = _fields(archive, member)
            name, version = fields["Name"], fields["Version"]
            yield _component(name, version, f"pkg:pypi/{quote(name.lower().replace('_', '-'))}@{quote(version)}")


def _fields(archive: tarfile.TarFile, member: tarfile.TarInfo) -> email.message.Message:
    file = archive.extractfile(member)
    assert file is not None, member.name
    return email.parser.Parser().parsestr(file.read().decode())


def _component(name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bill(path: Path, name: str, version: str) -> dict[str, Any]:
    """Return the CycloneDX document of the image archive at a path."""
    with tarfile.open(path) as archive:
        found = sorted(components(archive), key=lambda component: str(component["purl"]))
    digest = hashlib.sha256(json.dumps([name, version, found]).encode()).digest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": name, "name": name, "version": version}},
        "components": found,
    }


def main() -> None:
    """Parse the arguments and print the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    args = parser.parse_args()
    json.dump(bill(args.archive, args.name, args.version), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
