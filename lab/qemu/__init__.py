"""The backends whose machines are QEMU guests: packages, image, machine, channels, and what each backend adds."""
