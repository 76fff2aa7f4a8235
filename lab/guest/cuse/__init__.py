"""``/dev/nsm`` in a guest, served from user space: the production client uses a real device node and ioctl."""
