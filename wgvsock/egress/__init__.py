"""What an enclave may reach: one policy, which the relay's packet filter and the enclave apply in the same way.

`settings` is the policy in TOML and `policy` holds its rules. `names` maps names to their addresses for a limited time.
`closed` lists the networks that no policy opens implicitly. `verdict` decides about a flow's first packet.

Nothing here does I/O or reads a clock: `now` is an argument, in seconds on the caller's clock.
"""
