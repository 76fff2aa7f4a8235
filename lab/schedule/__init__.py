"""A schedule of faults, drawn from a seed, in a laboratory under traffic: ``python -m lab schedule``."""
