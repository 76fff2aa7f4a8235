"""A stand-in for the Nitro Security Module: AWS-shaped certificates, PCRs and documents, and a knob for every fault.

Every certificate says ``O=wgvsock-lab, OU=NOT-AWS``; every root is made anew and its key never leaves the process.
"""
