"""The production Relay with other WireGuard timers: ``python -m lab.programs.relay --config F --timings JSON``.

The command ``wgvsock relay run`` has no such option, because the whitepaper's timers are part of the protocol. With
them tests of rekeying under traffic would take minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from wgvsock.cli.output import print_error
from wgvsock.cli.relay import run
from wgvsock.errors import WgvsockError
from wgvsock.wireguard import Timings


def main(argv: Sequence[str]) -> int:
    """Run the Relay until it is stopped."""
    parser = argparse.ArgumentParser(prog="lab.programs.relay")
    parser.add_argument("--config", required=True)
    parser.add_argument("--timings", type=json.loads, required=True, metavar="JSON")
    arguments = parser.parse_args(argv)
    try:
        return run(arguments.config, Timings(**arguments.timings))
    except WgvsockError as error:
        print_error(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
