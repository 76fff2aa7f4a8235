"""The ``wgvsock`` command: one file for each subcommand, imported only when it runs."""

from wgvsock.cli.start import device_main, main

__all__ = ["device_main", "main"]
