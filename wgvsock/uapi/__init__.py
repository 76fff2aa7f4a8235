"""The cross-platform control socket that ``wg`` and ``wg-quick`` use."""
