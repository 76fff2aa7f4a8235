"""The machine as an object: services receive it instead of opening devices and sockets themselves."""
