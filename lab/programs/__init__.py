"""Programs that run in the laboratory's machines and need wgvsock, or one of its libraries.

They are the services, started with options that the production commands lack, an application, and attackers. Programs
that need only the standard library are in `lab.guest`.
"""
