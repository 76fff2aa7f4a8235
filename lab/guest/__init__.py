"""Programs that run in the laboratory's machines, namespaces and guests alike, with the standard library only.

Nothing here imports the project's code except its neighbours, so that each program starts fast and runs wherever Python
exists. Programs that need wgvsock are in `lab.programs`.
"""
