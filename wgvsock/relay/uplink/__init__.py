"""The relay's uplink, either through the kernel or through an engine in user space."""
