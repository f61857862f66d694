"""Convert whole trees: every file that is read, in any number of processes, in one order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from accel.convert import engine, project, sweep
from accel.convert.finding import FileResult, TreeResult
from accel.convert.options import Options
from accel.convert.pages.words import cut
from accel.convert.shadowing import shadowing
from accel.convert.sweep.native_links import linked
from accel.convert.tables import support
from accel.convert.walking import LARGEST, PYTHON, SHELL, Found, Walk, discover
from accel.convert.wording import listed
from accel.convert.writing import why_broken
from accel.report import Progress

INPUT = "<stdin>"  # the name of a file without one
_BATCH = 256 << 10  # bytes that a worker gets at once: under a second of work
_PER_WORKER = 1 << 20  # bytes that are worth the start of a process


class _Task(NamedTuple):
    """One file that was read."""

    number: int
    path: str
    language: str
    data: bytes


def convert_tree(
    paths: Sequence[str | os.PathLike[str]],
    options: Options,
    *,
    jobs: int = 1,
    exclude: Sequence[str] = (),
    progress: Callable[[int], Progress] | None = None,
) -> TreeResult:
    """Convert all files under some paths; nothing is written.

    Args:
        paths: Files and directories.
        options: The same for all files.
        jobs: Processes; 0 for as many as there are cores and the tree is worth.
        exclude: Patterns of names that are left out; see `walking.discover`.
        progress: Makes a progress bar for a number of files; None for none.

    Returns:
        Every file by its name, whatever became of it: one that cannot be read or parsed has an
        `error`, and stays as it is.

    Raises:
        ValueError: There is no path, `jobs` is negative, or the options are wrong.
        FileNotFoundError: A path does not exist.
        RuntimeError: A worker process died.
    """
    walk = discover(paths, exclude=exclude, language_of=sweep.language_of)
    return convert_walk(walk, options, jobs=jobs, progress=progress)


def convert_walk(
    walk: Walk,
    options: Options,
    *,
    jobs: int = 1,
    progress: Callable[[int], Progress] | None = None,
) -> TreeResult:
    """Convert the files that were found; see `convert_tree`."""
    if jobs < 0:
        raise ValueError(f"jobs must be 0 (all cores) or the number of processes, got {jobs}")
    begun = time.monotonic()
    _check(options)
    results: dict[int, FileResult] = {}
    tasks: list[_Task] = []
    for number, found in enumerate(walk.files):
        read = _read(number, found)
        if isinstance(read, _Task):
            tasks.append(read)
        else:
            results[number] = read
    names = project.index({one.path: one.data for one in tasks if one.language == PYTHON})
    workers = _workers(jobs, tasks)
    with (progress or _silent)(len(tasks)) as bar:
        for number, result in _converted(tasks, options, names, workers):
            results[number] = result
            bar.advance(text=cut(result.path, 40))
    return TreeResult(
        roots=walk.roots,
        files=linked([results[number] for number in range(len(walk.files))]),
        target=options.target,
        chip=options.chip,
        seconds=time.monotonic() - begun,
        conflicts=tuple(_conflicts(walk, options)),
    )


def convert_bytes(
    data: bytes,
    path: str,
    language: str,
    options: Options,
    names: project.Project | None = None,
) -> FileResult:
    """Convert one file's bytes.

    Args:
        data: What is in the file.
        path: Its name, for the report.
        language: `python`, or as `sweep.language_of` calls it.
        options: What is asked.
        names: Constants of the other files.
    """
    if language == PYTHON:
        return engine.convert_source(data, path, options, names)
    if language == SHELL and sweep.language_of(path) is None:
        # A script without a suffix, known by its first line; the sweep goes by names.
        return replace(sweep.sweep(data, f"{path}.sh", options), path=path)
    return sweep.sweep(data, path, options)


def convert_input(data: bytes, options: Options) -> TreeResult:
    """Convert one Python file that has no name, such as standard input."""
    task = _Task(0, INPUT, PYTHON, data)
    _check(options)
    result = _convert(task, options, project.index({}))
    return TreeResult(("-",), (result,), options.target, options.chip)


def _read(number: int, found: Found) -> _Task | FileResult:
    try:
        size = found.location.stat().st_size
        if size > LARGEST:
            error = (
                f"{size / (1 << 20):.1f} MiB are over the limit of {LARGEST >> 20} MiB; it was "
                "not looked into: look yourself, or exclude it"
            )
            return FileResult(found.path, found.language, b"", b"", error=error)
        return _Task(number, found.path, found.language, found.location.read_bytes())
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        return FileResult(found.path, found.language, b"", b"", error=reason)


def _conflicts(walk: Walk, options: Options) -> Iterator[str]:
    if options.target == "accel":
        for path in shadowing(walk, "accel"):
            yield (
                f"{path} would be imported in the place of this library: rename it, exclude it, or "
                "convert with --target torch"
            )


def _silent(total: int) -> Progress:
    return Progress(total, enabled=False)


def _workers(jobs: int, tasks: Sequence[_Task]) -> int:
    if jobs:
        return max(1, min(jobs, len(tasks)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, sum(len(one.data) for one in tasks) // _PER_WORKER))


def _converted(
    tasks: Sequence[_Task], options: Options, names: project.Project, workers: int
) -> Iterator[tuple[int, FileResult]]:
    """The results, in the order in which they come."""
    if workers == 1:
        for task in tasks:
            yield task.number, _convert(task, options, names)
        return
    pool = ProcessPoolExecutor(
        workers,
        # The caller may have threads, or torch, that do not survive a fork.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(options, names),
    )
    waiting: dict[Future[list[tuple[int, FileResult]]], list[_Task]] = {}
    try:
        with _without_interrupts():
            for batch in _batches(tasks, workers):
                waiting[pool.submit(_convert_batch, batch)] = batch
        for future in as_completed(waiting):
            yield from future.result()
    except BrokenExecutor as error:
        raise RuntimeError(_death(waiting)) from error
    finally:
        # After an error, or Ctrl-C, what has not begun must not begin.
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C leaves alone: a terminal sends it to all, the first one decides.

    The first process gets its own when this ends. Where threads have no signal masks (Windows), the
    others are interrupted as well.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _batches(tasks: Sequence[_Task], workers: int) -> Iterator[list[_Task]]:
    limit = min(_BATCH, sum(len(task.data) for task in tasks) // (4 * workers))
    batch: list[_Task] = []
    size = 0
    for task in tasks:
        batch.append(task)
        size += len(task.data)
        if size >= limit:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _death(waiting: dict[Future[list[tuple[int, FileResult]]], list[_Task]]) -> str:
    lost = [batch for future, batch in waiting.items() if future.cancelled() or future.exception()]
    names = [task.path for batch in lost for task in batch]
    return (
        "a worker process died (killed, or out of memory) before these were done: "
        f"{listed(names, 5)}; nothing is written: run again with --jobs 1 to see at which file"
    )


_given: tuple[Options, project.Project] | None = None  # of a worker process


def _begin(options: Options, names: project.Project) -> None:
    global _given
    _given = options, names
    threading.Thread(target=_end_with, args=[multiprocessing.parent_process()], daemon=True).start()


def _end_with(parent: BaseProcess | None) -> None:
    """Leave when the first process is gone, be it killed: nobody waits for the work any more."""
    if parent is not None:
        parent.join()
    os._exit(1)


def _check(options: Options) -> None:
    """Wrong options are one error, not one for each file."""
    support(options.chip)
    convert_bytes(b"", "options.py", PYTHON, options)


def _convert_batch(batch: Sequence[_Task]) -> list[tuple[int, FileResult]]:
    if _given is None:
        raise RuntimeError("a worker process that was not told its options")
    return [(task.number, _convert(task, *_given)) for task in batch]


def _convert(task: _Task, options: Options, names: project.Project) -> FileResult:
    """Convert one file; a bug that shows there is told with its name, and costs no other file."""
    try:
        result = convert_bytes(task.data, task.path, task.language, options, names)
    except Exception as error:
        return _kept(task, f"a bug of the converter: {_described(error)}; please report it")
    if result.is_changed:
        problem = why_broken(result.language, result.before, result.after)
        if problem:
            return _kept(task, f"{problem}; please report it")
    return result


def _kept(task: _Task, error: str) -> FileResult:
    lines = task.data.count(b"\n") + (not task.data.endswith(b"\n") and bool(task.data))
    return FileResult(task.path, task.language, task.data, task.data, error=error, lines=lines)


def _described(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}{at}: {said[:200]}" if said else f"{type(error).__name__}{at}"
