"""Faults that are no crash: errors of system calls, full disks, interrupted calls.

Belongs here: making one call fail and knowing which can (`calls`, `gate`, `inject`; `sqlite` for
its C code), a `quota`, and a directory in memory (`fake`). What a failed call does to a save is
judged by `fault_injector`.
"""
