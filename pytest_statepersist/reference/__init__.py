"""A complete persistence layer for stateful apps, and the harness' own first subject.

The law: this package looks like good user code. It imports nothing from the rest of
`pytest_statepersist`, each module holds one idea, and each says in its docstrings what is
promised on return and after a crash. Import from the modules themselves; nothing is loaded
here, so that whoever needs only the atomic write pays for nothing else.
"""
