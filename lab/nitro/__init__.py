"""A stand-in for ``nitro-cli``: the real tool's flags, JSON, messages and exit codes over the laboratory's guests."""
