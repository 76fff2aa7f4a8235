"""``/dev/nsm`` in a guest, served from user space: the production NSM client meets a real device node and a real ioctl."""
