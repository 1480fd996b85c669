"""Records what any program does to a directory, by running ``strace``.

Belongs here: finding, starting and stopping strace, and putting marks into its stream; what the
calls mean is `strace_model`'s. Rules:

1. No block starts before every thread of this process was seen to be traced.
2. Everything that can go wrong with strace itself is a `RecorderUnavailable` with the way out.
3. The trace must explain the directory, byte for byte, or there is a `BlindSpot` instead of it.

The traced threads run on one processor for the time of the recording: calls then rarely run at the
same time, whose order nobody could tell.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_statepersist.core.apply import apply
from pytest_statepersist.core.operations import Trace
from pytest_statepersist.errors import BlindSpot, RecorderUnavailable, TraceError, UserError
from pytest_statepersist.recorders.builder import TraceBuilder
from pytest_statepersist.recorders.scan import Keep, Scan, scan
from pytest_statepersist.recorders.sqlite import is_shared_memory
from pytest_statepersist.recorders.strace_contents import now_writable
from pytest_statepersist.recorders.strace_held import what_is_held
from pytest_statepersist.recorders.strace_looks import Looks
from pytest_statepersist.recorders.strace_maps import settle
from pytest_statepersist.recorders.strace_model import SYSTEM_CALLS, Known, StraceModel, births_in
from pytest_statepersist.recorders.strace_order import in_order
from pytest_statepersist.recorders.strace_parser import Call, Event, parse
from pytest_statepersist.recorders.strace_process import (
    LARGEST,
    bound_output,
    may_be_traced,
    no_permission,
    one_processor,
    output_of,
    tasks,
    too_much,
    tracers,
    was_too_much,
)
from pytest_statepersist.recorders.strace_tasks import Mapping, OpenFile
from pytest_statepersist.recorders.strace_unseen import FinalContents, find_out

__all__ = ["StraceRecorder", "Watched", "check_available"]

_OLDEST = (5, 0)
_LONGEST = 1 << 25  # strace makes buffers of five times this; what is longer is looked up later
_PATIENCE = 20.0


def check_available() -> str:
    """Return the path of a strace that can be used; raises `RecorderUnavailable` otherwise."""
    if not sys.platform.startswith("linux"):
        raise RecorderUnavailable(
            f"strace exists on Linux only, this is {sys.platform}: run this test on Linux, in a "
            "container or a virtual machine"
        )
    program = shutil.which("strace")
    if program is None:
        raise RecorderUnavailable(
            "strace is not installed: it comes from the system's package manager "
            "(apt install strace, dnf install strace, apk add strace)"
        )
    answer = subprocess.run([program, "-V"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\d+)\.(\d+)", answer.stdout)
    if found is None:
        raise RecorderUnavailable(
            f"{program} -V does not say its version but {answer.stdout[:80]!r}: install a "
            "strace of your distribution"
        )
    version = int(found[1]), int(found[2])
    if version < _OLDEST:
        raise RecorderUnavailable(
            f"strace {version[0]}.{version[1]} is too old, {_OLDEST[0]}.{_OLDEST[1]} is needed "
            "(2019): update it"
        )
    return program


@dataclass(frozen=True, slots=True)
class Watched:
    """A command that ran under strace: exit code, what it printed, and what was seen of it."""

    code: int
    output: bytes
    errors: bytes
    events: list[Event]
    where: str
    program: str


class StraceRecorder:
    """Records a block of this process (`start`, `stop`) or a command (`run`).

    Keyword options: ``ignore`` gets relative paths and says what is no state; ``scratch`` is a
    directory for strace's output, outside of the one that is recorded; ``looks`` is whether a block
    looks at what it maps for writing, without which such a map is a blind spot where it is synced;
    ``largest`` is how many bytes of strace's output are believed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        ignore: Callable[[str], bool] | None = None,
        scratch: str | os.PathLike[str] | None = None,
        looks: bool = True,
        largest: int = LARGEST,
    ) -> None:
        self.directory = os.path.realpath(directory)
        if not os.path.isdir(self.directory):
            raise UserError(f"{os.fspath(directory)!r} is not a directory, so nothing to record")
        self._ignore = ignore
        self._scratch = scratch
        self._looking = looks
        self._largest = largest
        self._strace: subprocess.Popen[bytes] | None = None
        self._token = ""
        self._looks: Looks | None = None
        self._acknowledged: list[str] = []
        self._watched: list[Watched] = []
        self._affinity: dict[int, set[int]] = {}
        self.earlier: Trace | None = None
        """The trace with the changes of maps as early as can be, where that makes a difference."""
        self.marks: dict[str, int] = {}
        """Names of `mark` to the number of operations in the trace before them, the first time."""

    # -- a block of this process ---------------------------------------------------------------

    def start(self) -> None:
        """Attach strace to this process; returns when every thread is traced.

        Raises `RecorderUnavailable`.
        """
        program = check_available()
        if self._strace is not None:
            raise UserError("this recorder is running already: stop it first")
        tracer = tracers().get(os.getpid(), 0)
        if tracer:
            raise RecorderUnavailable(
                f"process {tracer} traces this one already (a debugger or another strace): only "
                "one can, so end it first"
            )
        self._folder = Path(tempfile.mkdtemp(prefix="statepersist-strace-", dir=self._scratch))
        self._token = secrets.token_hex(8)
        self._owner = os.getpid()
        self._acknowledged = []
        self._base = self._scan()
        # Files get the time of the last tick, which may be a little earlier than the clock's.
        self._begun = time.time() - 0.02
        with may_be_traced():
            command = [*self._command(program), "-p", str(os.getpid())]
            with open(self._folder / "errors", "wb") as errors:
                self._strace = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors)
            bound_output(self._strace, self._largest)
            try:
                self._wait_until_traced(self._strace)
            except BaseException:
                self._end_strace()
                shutil.rmtree(self._folder, ignore_errors=True)
                raise
        self._pin()
        self._mark("attached")
        self._held = what_is_held()
        self._looks = Looks(self._mark, self.unseen) if self._looking else None
        if self._looks is not None:
            self._looks.start()
        self._mark("begin")

    def acknowledge(self, text: str = "") -> None:
        """Note that the subject said "saved" here."""
        if self._looks is not None:
            self._looks.look()
        if os.getpid() != self._owner:
            self._mark("saved-elsewhere")
            return
        self._mark(f"saved/{len(self._acknowledged)}")
        self._acknowledged.append(text)

    def mark(self, name: str) -> None:
        """Remember this place of the trace under a name; `marks` has it after `stop`."""
        self._mark(f"mark/{name}")

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Leave out of the trace what this thread does: another call shows it already."""
        self._mark("unseen")
        try:
            yield
        finally:
            self._mark("seen")

    def stop(self) -> Trace:
        """Detach strace and return the trace; raises `BlindSpot` for what cannot be known."""
        if self._strace is None:
            raise UserError("this recorder is not running: start it first")
        try:
            self._mark("end")
            strace = self._strace
            self._end_strace()
            if was_too_much(strace):
                raise too_much(self._largest)
            events = self._events()
            first, last = self._span(events)
            return self._build(events, first, last, self._begin_attached)
        finally:
            self._end_strace()
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> StraceRecorder:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._strace is not None:  # the block raised, or nobody wants the trace
            self._end_strace()
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- a command -----------------------------------------------------------------------------

    def run(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: abc.Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> tuple[Trace, int, bytes]:
        """Run a command to its end; return the trace, its exit code, and what it printed.

        The output is standard output and error together; ``timeout`` is in seconds. Raises
        `RecorderUnavailable`, `BlindSpot`, `UserError` where there is no such command, and
        `subprocess.TimeoutExpired`.
        """
        self._watched = []
        ran = self.watch(arguments, cwd=cwd, env=env, timeout=timeout)
        return self.watched(), ran.code, ran.output

    def watch(
        self,
        arguments: Sequence[str | os.PathLike[str]],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: abc.Mapping[str, str] | None = None,
        timeout: float | None = None,
        inject: str | None = None,
        also: Sequence[str] = (),
        apart: bool = False,
    ) -> Watched:
        """Run a command as `run` does and return what strace saw; `watched` makes the trace.

        ``inject`` is a fault in strace's words, ``also`` more system calls to see, reads with all
        that they give; ``apart`` keeps error output by itself.
        """
        program = check_available()
        self._folder = Path(tempfile.mkdtemp(prefix="statepersist-strace-", dir=self._scratch))
        self._token = ""
        self._looks = None
        self._acknowledged = []
        if not self._watched:
            self._base = self._scan()
            # Files get the time of the last tick, which may be a little earlier than the clock's.
            self._begun = time.time() - 0.02
        where = os.path.realpath(os.getcwd() if cwd is None else cwd)
        wanted = [os.fspath(argument) for argument in arguments]
        if not wanted or shutil.which(wanted[0], path=(env or os.environ).get("PATH")) is None:
            raise UserError(f"there is no command {wanted[:1]!r} to run under strace")
        try:
            with one_processor():
                done = subprocess.Popen(
                    [*self._command(program, inject, also), "--", *wanted],
                    cwd=where,
                    env=None if env is None else dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE if apart else subprocess.STDOUT,
                    start_new_session=True,
                )
            with done:
                try:
                    calls = self._folder / "calls"
                    output, errors = output_of(done, calls, self._largest, timeout)
                except BaseException:
                    os.killpg(done.pid, signal.SIGKILL)
                    raise
            events = self._events() if (self._folder / "calls").exists() else []
            if not any(isinstance(e, Call) and e.name == "execve" and e.succeeded for e in events):
                raise no_permission((errors or output).decode(errors="replace"))
            ran = Watched(done.returncode, output, errors or b"", events, where, wanted[0])
            self._watched.append(ran)
            return ran
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def watched(self) -> Trace:
        """Return the trace of all commands that `watch` ran, one after the other.

        The directory must hold what they left. Raises `BlindSpot` for what cannot be known.
        """
        umask, line = what_is_held().umask, 0
        events: list[Event] = []
        for ran in self._watched:
            events += [_later(event, line) for event in ran.events]
            line = max((_line(event) for event in events), default=-1) + 1

        def begin(model: StraceModel) -> None:
            for ran in self._watched:
                program = os.path.basename(ran.program)
                model.add_task(ran.events[0].task, ran.where, program, umask)

        return self._build(events, 0, len(events), begin)

    # -- strace --------------------------------------------------------------------------------

    def _command(
        self, program: str, inject: str | None = None, also: Sequence[str] = ()
    ) -> list[str]:
        names = dict.fromkeys((*SYSTEM_CALLS, *also))
        # Of what was read only how much matters, but where from is not shown beside it.
        raw = () if also else ("-e", "raw=read,readv")
        fault = () if inject is None else ("-e", f"inject={inject}")
        return [
            program,
            "-f",
            "-y",
            "-xx",
            "-ttt",
            "-qq",
            "-s",
            str(_LONGEST),
            "-e",
            "signal=none",
            *raw,
            *fault,
            "-e",
            "trace=" + ",".join(f"?{name}" for name in names),
            "-o",
            str(self._folder / "calls"),
        ]

    def _wait_until_traced(self, strace: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            traced = tracers()
            if traced and all(tracer == strace.pid for tracer in traced.values()):
                return
            if strace.poll() is not None:
                raise no_permission((self._folder / "errors").read_text(errors="replace"))
            if time.monotonic() > deadline:
                missing = sorted(task for task, by in traced.items() if by != strace.pid)
                raise RecorderUnavailable(
                    f"strace did not attach to threads {missing} of this process within "
                    f"{_PATIENCE:.0f} s: the machine may be overloaded, or a thread hangs in the "
                    "kernel"
                )
            time.sleep(0.001)

    def _end_strace(self) -> None:
        strace, self._strace = self._strace, None
        if self._looks is not None:
            self._looks.stop()
        if strace is None:
            return
        if strace.poll() is None:
            strace.terminate()  # it detaches from everything and ends
        try:
            strace.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            strace.kill()
            strace.wait()
        self._unpin()

    def _mark(self, what: str) -> None:
        os.access(f"/.statepersist/{self._token}/{what}", os.F_OK)

    def _pin(self) -> None:
        self._affinity = {}
        for task in tasks():
            with contextlib.suppress(OSError):
                self._affinity[task] = os.sched_getaffinity(task)
        chosen = {min(os.sched_getaffinity(0))}
        for task in [*self._affinity, self._strace.pid if self._strace else 0]:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(task, chosen)

    def _unpin(self) -> None:
        usual = self._affinity.get(os.getpid())
        for task in tasks() if usual else ():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(task, self._affinity.get(task, usual or set()))
        self._affinity = {}

    # -- from text to trace --------------------------------------------------------------------

    def _scan(self) -> Scan:
        return scan(self.directory, keep=Keep(self.directory), ignore=self._left_out)

    def _left_out(self, path: str) -> bool:
        if self._ignore is not None and self._ignore(path):
            return True
        return is_shared_memory(os.path.join(self.directory, path))

    def _is_state(self, path: str) -> bool:
        prefix = self.directory + os.sep
        return not path.startswith(prefix) or not self._left_out(path[len(prefix) :])

    def _events(self) -> list[Event]:
        with open(self._folder / "calls", encoding="ascii", errors="backslashreplace") as lines:
            return list(parse(lines))

    def _span(self, events: list[Event]) -> tuple[int, int]:
        """Return the first and the last event of the block, by its marks."""
        places = {}
        for index, event in enumerate(events):
            if isinstance(event, Call) and event.name.startswith(("access", "faccessat")):
                shown = "".join(event.arguments).replace("\\x", "")
                for mark in ("attached", "begin", "end"):
                    if f'/.statepersist/{self._token}/{mark}"'.encode()[:-1].hex() + '"' in shown:
                        places[mark] = index
        if len(places) < 3:
            raise TraceError(
                "strace's output lacks the marks of this recording: strace was killed or its "
                "output was cut (is the disk for temporary files full?)"
            )
        main = events[places["begin"]].task
        for event in events[places["attached"] + 1 : places["begin"]]:
            if isinstance(event, Call) and event.task != main and self._matters(event):
                raise BlindSpot(
                    f"another thread was at work ({event.name}) when the recording began, so what "
                    "it held is not known: start the recording before the threads, or while they "
                    "wait",
                    culprit=f"thread {event.task}",
                )
        return places["begin"] + 1, places["end"]

    def _matters(self, call: Call) -> bool:
        """Say whether a call may have changed what this process holds of the directory."""
        shown = "".join(call.arguments).replace("\\x", "") + (call.result_path or b"").hex()
        changes = ("chdir", "fchdir", "umask", "unshare", "clone", "clone3", "fork", "vfork")
        return call.name in changes or os.fsencode(self.directory).hex() in shown

    def _begin_attached(self, model: StraceModel) -> None:
        held, builder = self._held, model.builder
        task = model.add_task(os.getpid(), held.cwd, held.program, held.umask)
        files: dict[int, OpenFile] = {}
        for number, description in held.files.items():
            inode = builder.find(description.identity)
            if inode is None:
                continue
            file = files.get(description.group)
            if file is None:
                builder.opened(inode)
                file = files[description.group] = OpenFile(
                    inode,
                    description.position,
                    append=bool(description.flags & os.O_APPEND),
                    durability=description.durability,
                )
            close_on_exec = bool(description.flags & os.O_CLOEXEC)
            task.descriptors.set(number, file, close_on_exec=close_on_exec)
        for address, length, offset, identity in held.maps:
            inode = builder.find(identity)
            if inode is not None:
                builder.opened(inode)
                file = OpenFile(inode, references=1)
                mapping = Mapping(address, length, offset, file, shared=True, writable=True)
                task.memory.maps.append(mapping)
                now_writable(model, mapping)

    def _build(
        self,
        events: list[Event],
        first: int,
        last: int,
        begin: Callable[[StraceModel], None],
    ) -> Trace:
        self.earlier = None
        births = births_in(events)
        threads = self._threads_at(events, first)
        ordered = in_order(events[first:last])
        marked: dict[str, int] = {}

        def once(known: Known | None) -> tuple[TraceBuilder, StraceModel]:
            builder = TraceBuilder(
                self.directory,
                self._base.tree,
                recorder="strace",
                identities=self._base.identities,
            )

            def on_mark(path: str) -> None:
                _, _, _, kind, *rest = path.split("/")
                if kind == "saved":
                    builder.acknowledge(self._acknowledged[int(rest[0])])
                    model.saved()
                elif kind == "saved-elsewhere":
                    model.not_known(
                        "acknowledge() was called in a child process, whose values stay there: "
                        "have the child tell its parent, and acknowledge in the parent",
                        "acknowledge",
                    )
                elif kind == "mark":
                    marked.setdefault(rest[0], len(builder))
                elif kind == "look" and self._looks is not None:
                    seen = self._looks.seen[int(rest[0])]
                    model.looked(seen.path, seen.look)

            model = StraceModel(
                builder, births=births, known=known, is_state=self._is_state, on_mark=on_mark
            )
            begin(model)
            if self._token:
                for thread in threads - {os.getpid()}:
                    model.add_thread(thread, os.getpid())
            for event, horizon in ordered:
                model.feed(event, horizon)
            if builder.doubts:
                raise builder.doubts[0]
            return builder, model

        builder, model = once(None)
        trace = builder.finish()
        if model.findings:
            marked.clear()
            _no_map_of_unknowns(model)
            builder, model = once(find_out(trace, model.findings, begun=self._begun))
            trace = builder.finish()
        positions = builder.positions() if marked or model.map_events else []
        if model.map_events:
            lives = [replace(e, position=positions[e.position]) for e in model.map_events]
            trace, self.earlier = settle(trace, lives, FinalContents(trace).content)
        self._must_explain(trace)
        self.marks = {name: positions[at] for name, at in marked.items()}
        return trace

    def _threads_at(self, events: list[Event], first: int) -> set[int]:
        """Return the threads that existed when the block began, by what is seen of them."""
        born = births_in(events[first:])
        return {event.task for event in events} - born.keys()

    def _must_explain(self, trace: Trace) -> None:
        now = scan(self.directory, ignore=self._left_out).tree
        differences = apply(trace).differences(now)
        if differences:
            raise BlindSpot(
                f"{differences[0]}: something changed it that strace did not see (a process that "
                "was there before the recording, or one on another machine)",
                culprit=differences[0].split(" ")[0],
            )


def _line(event: Event) -> int:
    return event.end if isinstance(event, Call) else event.line


def _later(event: Event, lines: int) -> Event:
    """Return an event of a command that ran after others, whose output had so many lines."""
    if isinstance(event, Call):
        return replace(event, start=event.start + lines, end=event.end + lines)
    return replace(event, line=event.line + lines)


def _no_map_of_unknowns(model: StraceModel) -> None:
    """Doubt files whose content is looked up at the end and that memory may have changed."""
    findings = model.findings
    unknown = {each.inode for each in findings.unknowns} | set(findings.arrivals.values())
    for event in model.map_events:
        if event.inode in unknown:
            raise BlindSpot(
                f"what happened on disk is not covered: {event.name!r} was written inside the "
                "kernel (sendfile, splice, copy_file_range) or came from outside, and is mapped "
                "for writing as well, so which bytes came from where is not known",
                culprit=event.name,
            )
