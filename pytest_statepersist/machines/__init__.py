"""Hypothesis machines that drive any store through its adapter, each for one kind of promise.

Belongs here: one module for each machine, a model in memory that says what must hold, and what the
machines share. Names are resolved when they are first used, so that the adapters of the reference
stores can be had without Hypothesis.
"""
