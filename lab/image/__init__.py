"""What guests and containers boot, built from the checkout and pinned packages, and measured as by Nitro.

Nothing here starts a machine: `lab.qemu`, `lab.nitro` and `lab.container` do that.
"""
