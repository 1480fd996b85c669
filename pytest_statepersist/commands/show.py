"""Explain a bundle and print a regression test for it; or print a recorded trace as a table.

A trace is what 'statepersist check --trace FILE' and Trace.to_json() write.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

from pytest_statepersist.bundle import find, nearest, read
from pytest_statepersist.bundle_json import Bundle
from pytest_statepersist.callables import IMPORT
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.errors import BundleError, UserError
from pytest_statepersist.report.operations import printable
from pytest_statepersist.report.trace import table

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: a bundle, or the file of a trace."""
    parser.add_argument(
        "what", metavar="ID|TRACE.json", help="id or file of a bundle, or a file with a trace"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print it; returns 0, raises `UserError` where it is neither."""
    path = Path(arguments.what)
    if path.is_file():
        try:
            bundle = read(path)
        except BundleError as error:
            if "no bundle" not in str(error) and path.name.endswith(".gz"):
                raise
            print(printable("\n".join(table(_trace(path, error)))))
            return 0
    else:
        path = find(arguments.what, nearest(Path.cwd()))
        bundle = read(path)
    ours = path.absolute().parent == nearest(Path.cwd())
    print(printable(_explained(bundle, path, ours)))
    return 0


def _trace(path: Path, error: BundleError) -> Trace:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as unread:
        raise UserError(f"{path} cannot be read as a trace: {unread}") from None
    if '"statepersist-bundle"' in text[:200]:
        raise error
    return Trace.from_json(text)


def _explained(bundle: Bundle, path: Path, ours: bool) -> str:
    test = bundle.test or "a call outside pytest"
    lines = [
        f"{bundle.name}: {bundle.cause} ({bundle.kind}), allowed by {bundle.model}",
        f"  found by {test}, version {bundle.package}, Python {bundle.python}",
        "",
        bundle.text,
        "",
        "What was done:",
        *(f"  {line}" for line in table(bundle.trace)),
        "",
    ]
    if bundle.test:
        lines.append(f"Replay it:       pytest --statepersist-replay {bundle.name}")
    if bundle.history:
        return "\n".join([*lines, *_of_a_machine(bundle)])
    lines += [
        f"Look at it:      statepersist materialize {bundle.name} DIR",
        "",
        f"A regression test, once {path.name} lies beside it:",
        "",
        *(f"    {line}".rstrip() for line in _regression_test(bundle, path.name, ours)),
    ]
    return "\n".join(lines)


def _of_a_machine(bundle: Bundle) -> Iterator[str]:
    from pytest_statepersist.machines.kept import regression_test

    yield f"Look at the disk: statepersist materialize {bundle.name} DIR"
    yield ""
    yield "A regression test that needs neither this bundle nor one version of Hypothesis:"
    yield ""
    name = next(iter(bundle.test.split("::")[1:]), "")
    name = name if name.isidentifier() else "TestOfYourMachine"
    yield from (f"    {line}".rstrip() for line in regression_test(name, bundle.history))


def _regression_test(bundle: Bundle, file: str, ours: bool) -> list[str]:
    """Write a test that runs as it is, as far as the functions of the first one can be written.

    What a bundle from elsewhere says of functions is not shown as code to copy.
    """
    rows = [row for row in bundle.sources if row[0] != IMPORT] if ours else [("recover", "")]
    imports = [text for name, text in bundle.sources if name == IMPORT and ours]
    given = dict(rows)
    if not given.get("workload") or given.get("setup") == "":
        given.pop("setup", None)
        given.pop("workload", None)
    lines = [
        *(line for line in imports if line.startswith("import ")),
        "from pathlib import Path",
        "",
        *(line for line in imports if line.startswith("from ")),
        "from pytest_statepersist import replay_bundle",
        "",
        "",
        f"def test_recovery_after_crash_{bundle.name.split('-')[0]}():",
        "    replay_bundle(",
        f"        Path(__file__).with_name({file!r}),",
    ]
    for name in ("setup", "workload", "recover", "invariant"):
        if given.get(name):
            lines.append(f"        {name}={given[name]},")
        elif name in given:
            word = {"recover": "load"}.get(name, name)
            lines.append(f"        {name}={word},  # that of {bundle.test or 'your check()'}")
    for which in ("before", "after"):
        text = getattr(bundle, which)
        if "invariant" in given:
            continue
        if _literal(text):
            lines.append(f"        {which}={text},")
        elif text:
            shown = text.splitlines()[0][:60]
            lines.append(f"        # {which}= left out: what recovery gives there, {shown}")
    marks = [mark.text for mark in bundle.trace.acknowledgements]
    if marks and all(_literal(mark) for mark in marks):
        lines.append(f"        acknowledged=[{', '.join(marks)}],")
    elif marks:
        lines.append("        acknowledged=[...],  # the values that the workload acknowledges")
    return [*lines, "    )"]


def _literal(text: str) -> bool:
    """Say whether a text is a value, whole and on one line, so that it may stand in source."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False
    return repr(value) == text and text.isprintable()
