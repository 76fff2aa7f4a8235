"""The backends whose machines are QEMU guests: packages, image, machine, channels, and each backend's additions."""
