"""From crash states to findings: show each state, run recovery on it, judge what it gives.

Each module touches the world in one way: `materialise` writes states to a directory, `observe` sees
what a recovery reads and changes, `runner` runs it, `fresh` runs it in a new process, `search`
decides which states are worth a run. What is legal is decided in `core`, never here.
"""
