"""The user interface: the verbs of ``python -m lab``, the demonstration, ``make try`` and the examples."""
