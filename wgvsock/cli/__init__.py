"""The ``wgvsock`` command: one file a subcommand, each imported only when it is asked for."""

from wgvsock.cli.entry import main

__all__ = ["main"]
