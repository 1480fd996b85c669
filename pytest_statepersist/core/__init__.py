"""The pure core: operations, models, effects, states, trees and diagnosis.

Nothing in this folder reads a file, a clock or the environment, and nothing imports pytest or
hypothesis. Recorders feed it, explorers ask it, neither decides what is legal.
"""
