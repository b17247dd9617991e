"""`run_stream.py --selftest`: does everything work on this machine, and how near its limits?

run        what is checked, in which order
checks     engines and a frame's whole way; those of kernels are in kernels/checks/twin_checks.py
stages     every stage of the network, to be timed
ceilings   what the machine can move and multiply at best, and the floor that follows
report     one table
"""
