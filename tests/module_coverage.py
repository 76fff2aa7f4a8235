"""Check that the test file of its name covers each core module, line and branch.

Reads the data file of the last `coverage run`, and prints one line for each module below the limit and a summary.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 95.0
CORE = ("wireguard", "attestation", "egress", "provisioning", "settings")
CORE_MODULES = ("framing.py", "addresses.py", "errors.py", "virtio_net.py", "text.py", "checksum.py", "x25519.py")


def core_modules() -> list[Path]:
    """Return every module of the no-I/O core, relative to the checkout, without docstring-only ``__init__`` files."""
    package = ROOT / "wgvsock"
    files = [package / name for name in CORE_MODULES]
    for folder in CORE:
        files += sorted((package / folder).glob("*.py"))
    return [file.relative_to(ROOT) for file in files if file.exists() and file.name != "__init__.py"]


def own_test_file(module: Path) -> Path:
    """``wgvsock/wireguard/replay.py`` -> ``tests/unit/wireguard/test_replay.py``."""
    return Path("tests/unit", *module.parts[1:-1], f"test_{module.name}")


def main() -> int:
    """Return 0 if every core module reaches the limit."""
    low = []
    modules = core_modules()
    for module in modules:
        test_file = own_test_file(module)
        measured = coverage.Coverage()
        measured.load()
        percent = measured.report(
            include=[str(ROOT / module)],
            contexts=[f"^$|^{re.escape(str(test_file))}$"],
            file=io.StringIO(),
        )
        if percent < LIMIT or not (ROOT / test_file).exists():
            low.append(f"{percent:6.1f} %  {module} by {test_file}")
    for line in low:
        print(line)
    print(f"{len(modules) - len(low)} of {len(modules)} core modules reach {LIMIT:.0f} % by their own test file")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
