"""Faults that are no crash: errors of system calls, full disks, interrupted calls.

Belongs here: making one call fail and knowing which can (`calls`, `gate`, `inject`), a quota, and
the two ways for code that is not Python (`sqlite`, `strace`). What a failed call does to a save is
judged by `fault_injector`.
"""
