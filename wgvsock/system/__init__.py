"""The machine around a service: rtnetlink, packet filter, resolver, nitro-cli, and a journal of what was changed."""
