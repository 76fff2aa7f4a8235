"""The laboratory: stand-in enclaves, a fake NSM, captures. Never shipped in the wheel."""
