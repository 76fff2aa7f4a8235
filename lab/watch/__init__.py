"""Everything that passes: captures at interfaces, the tap at the vsock point, its streams, and the two lifecycles.

This package knows packets and the plan of the machines, but no backend: a backend provides captures
(`lab.watch.capture`) and a tap.
"""
