"""One fault sweep, in parts: the directory, single cases, power loss after them, and the whole.

Belongs here: judging what is left after a fault. How a call is made to fail is in `faults`.
"""
