"""The latency contract: how old frames may be, and what is given up when a load does not fit.

contract.py      joins the others to the stages, once a second
shedding.py      frames that are left before they cost a network pass
turns.py         so that each source has its turn
load_control.py  what to give up, and when to come back
"""
