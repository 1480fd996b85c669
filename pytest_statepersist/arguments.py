"""What users hand over: functions and directories, checked before anything runs.

Belongs here: refusing what cannot be, with the way out, and giving each workload one form.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_statepersist.core import operations as op
from pytest_statepersist.core.tree import Symlink
from pytest_statepersist.errors import BlindSpot, UserError
from pytest_statepersist.explorer.outcome import equal_values
from pytest_statepersist.explorer.runner import call, is_skip
from pytest_statepersist.explorer.workplace import workplace
from pytest_statepersist.settings import Settings


def refuse_links_back(trace: op.Trace, directory: Path) -> None:
    """A link in the state that leads to the user's directory would let a recovery write there."""
    targets = [node.target for node in trace.base.nodes.values() if isinstance(node, Symlink)]
    targets += [each.target for each in trace.operations if isinstance(each, op.Symlink)]
    for target in targets:
        if os.path.isabs(target) and Path(os.path.normpath(target)).is_relative_to(directory):
            raise UserError(
                f"the state holds an absolute symbolic link into {directory} itself ({target}), "
                "through which a recovery could change your files. Use check(setup=…, workload=…, "
                "recover=…), where each state appears at the path at which the workload ran."
            )


def check_callables(workload: Any, recover: Any, setup: Any, invariant: Any) -> None:
    """Refuse, as `UserError`, what is no function, or one whose body would never run."""
    for name, value in (("workload", workload), ("recover", recover)):
        if not callable(value):
            raise UserError(f"{name}= takes a function of the directory, not {value!r}")
    for name, value in (("setup", setup), ("invariant", invariant)):
        if value is not None and not callable(value):
            raise UserError(f"{name}= takes a function, not {value!r}")
    given = {"workload": workload, "recover": recover, "setup": setup, "invariant": invariant}
    for name, value in given.items():
        if inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value):
            raise UserError(f"{name}= is a generator function, whose body would never run")
    if inspect.iscoroutinefunction(invariant):
        raise UserError("invariant= is async; give a plain function that returns or asserts")


def with_acknowledge(
    workload: Callable[..., Any],
) -> Callable[[Path, Callable[[Any], None]], Any]:
    """Give every workload the same form: those that take one argument are not told.

    What a workload acknowledges is kept `as_it_is_now`.
    """
    wants = _taking_both(workload)

    def run(directory: Path, acknowledge: Callable[[Any], None]) -> Any:
        def at_once(value: Any = None) -> None:
            acknowledge(as_it_is_now(value))

        return wants(directory, at_once)

    return run


def as_it_is_now(value: Any) -> Any:
    """Return a value that later changes of the given one leave alone, where one can be made.

    A list that is saved, acknowledged and then emptied for the next batch was saved full. What does
    not equal its copy, or frees something when it goes away, stays the object that it is.
    """
    if type(value) in _NEVER_CHANGED or hasattr(type(value), "__del__"):
        return value
    try:
        copied = copy.deepcopy(value)
    except Exception:
        return value
    return copied if equal_values(copied, value) else value


_NEVER_CHANGED = (str, bytes, int, float, bool, type(None))


def _taking_both(
    workload: Callable[..., Any],
) -> Callable[[Path, Callable[[Any], None]], Any]:
    try:
        parameters = [
            p
            for p in inspect.signature(workload).parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
    except (TypeError, ValueError):
        parameters = []
    for parameter in parameters:
        if parameter.name in ("ack", "acknowledge"):
            if parameter.kind is not parameter.KEYWORD_ONLY:
                return workload
            name = parameter.name
            return lambda directory, acknowledge: workload(directory, **{name: acknowledge})
    positional = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    wants = sum(p.default is p.empty for p in positional) >= 2 or any(
        p.kind is p.VAR_POSITIONAL for p in positional
    )
    if wants:
        return workload
    return lambda directory, acknowledge: workload(directory)


def acknowledged_by(
    workload: Callable[..., Any], setup: Callable[[Path], Any] | None, settings: Settings
) -> tuple[Any, ...]:
    """Run a workload without recording it; return the values that it acknowledges."""
    values: list[Any] = []
    with workplace(settings.workspace) as place:
        directory = Path(place.directory)
        if setup is not None:
            user_call("setup", call, setup, directory)
        user_call("workload", call, with_acknowledge(workload), directory, values.append)
    return tuple(values)


def user_call(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that has to succeed; raises `UserError` with what it raised."""
    try:
        return function(*arguments)
    except (KeyboardInterrupt, UserError, BlindSpot):
        raise
    except BaseException as error:
        if is_skip(error):
            raise
        raise UserError(
            f"{what} raised {type(error).__name__}: {error}. Nothing was judged: {what} has to "
            "succeed once, without a crash, before crashes can be explored."
        ) from error


def watched_directory(directory: str | os.PathLike[str]) -> Path:
    """Return the directory to watch; raises `UserError` where it is none, or a link."""
    path = Path(directory)
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link; give the directory itself, {path.resolve()}, so that it "
            "is clear what is watched"
        )
    if not path.exists():
        raise UserError(f"{path} does not exist; make the directory before recording it")
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; give the directory that holds the state")
    return path.resolve()
