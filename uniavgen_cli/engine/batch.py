"""Many jobs into one folder: what is done stays done, whatever ends the run. No torch in the parent process.

A folder's hidden `.uniavgen` holds `journal` (for each file the content hash of its job, and its own),
`claims` (a file for each job, locked by the process that does it: a dead owner's lock is gone), `work` (where
a clip grows before it is renamed into its place) and `windows` (of long clips, those made so far).
"""

import ctypes
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen_cli import errors
from uniavgen_cli.engine.jobs import FileId, Job, file_id
from uniavgen_cli.engine.provenance import hash_file
from uniavgen_cli.errors import InputError, OutputError, UniAVGenError, UsageError, WeightsError

if TYPE_CHECKING:
    from uniavgen_cli.config import Preset
    from uniavgen_cli.engine.engine import Engine

HIDDEN = ".uniavgen"
_POLL_S = 0.5  # between two looks at a job that another process is doing
_NOT_OF_THE_WEIGHTS = {"name", "about", "extends", "clip", "sampling", "train"}  # of a preset's keys


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a job ended: `status` is made, kept (done before, or by another process) or failed."""

    job: Job
    status: str
    seconds: float = 0.0
    error: UniAVGenError | None = None
    warnings: tuple[str, ...] = ()


# ---- the folder ------------------------------------------------------------------------------------------


class Journal:
    """What is done in a folder, and who is doing what."""

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder = folder
        self.overwrite = overwrite
        self._hidden = folder / HIDDEN

    def prepare(self) -> None:
        """Make the folder and see that it can be written. Raises OutputError."""
        try:
            for name in ("journal", "claims", "work"):
                (self._hidden / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._hidden) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise OutputError(
                f"the folder {str(self.folder)!r} can't be written: {error.strerror}", "give another with -o"
            ) from None

    def may_write(self, name: str, inputs: Container[FileId] = ()) -> None:
        """Raise OutputError when that file is there and is one of `inputs`, or not the journal's."""
        path = self.folder / name
        if path.exists() and file_id(path) in inputs:
            raise OutputError(f"{str(path)!r} is also an input", "give the job another output")
        if path.is_dir():
            raise OutputError(f"{str(path)!r} is a folder", "give the job another output")
        if os.path.lexists(path) and self._entry(name) is None and not self.overwrite:
            raise OutputError(f"{str(path)!r} exists and is not this batch's", "--overwrite replaces it")

    def done(self, job: Job) -> bool:
        """Whether the job's file is there as the journal has it."""
        entry, path = self._entry(job.name), self.folder / job.name
        if entry is None or entry.get("content") != job.content or not path.is_file():
            return False
        found = hash_file(path)
        return all(found[key] == entry.get(key) for key in found)

    def commit(self, job: Job, clip: Path) -> None:
        """Move a whole clip into its place, its entry first: without the file that counts for nothing."""
        self.may_write(job.name)
        entry = {"content": job.content, **hash_file(clip)}
        fresh = clip.with_name("entry.json")
        fresh.write_text(json.dumps(entry), encoding="utf-8")
        os.replace(fresh, self._entry_path(job.name))
        os.replace(clip, self.folder / job.name)

    @contextmanager
    def claim(self, job: Job) -> Iterator[bool]:
        """Whether the job is this process's to do within the block; it is nobody else's then."""
        import fcntl

        with (self._hidden / "claims" / f"{job.name}.lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True  # the lock goes with the file, and with the process

    @contextmanager
    def work(self, job: Job) -> Iterator[Path]:
        """An empty folder for a claimed job, gone afterwards with all that is in it."""
        path = self.work_path(job)
        shutil.rmtree(path, ignore_errors=True)  # of a process that was killed
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def windows(self, job: Job) -> Iterator[Path]:
        """A folder for the windows of a claimed job, which stays unless the job is done."""
        path = self._hidden / "windows" / job.name
        path.mkdir(parents=True, exist_ok=True)
        yield path
        self.forget(job)

    def forget(self, job: Job) -> None:
        """Remove the windows of a job that is done."""
        shutil.rmtree(self._hidden / "windows" / job.name, ignore_errors=True)

    def work_path(self, job: Job) -> Path:
        return self._hidden / "work" / job.name

    def _entry(self, name: str) -> dict[str, Any] | None:
        try:
            entry = json.loads(self._entry_path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return entry if isinstance(entry, dict) else None

    def _entry_path(self, name: str) -> Path:
        return self._hidden / "journal" / f"{name}.json"


# ---- a worker --------------------------------------------------------------------------------------------


class _Notes(logging.Handler):
    """Keeps what the library warns of while a job is done."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


def _worker(connection: Connection, journal: Journal, number: int, workers: int) -> None:
    """Answers each job with (status, seconds, error, warnings) until its parent hangs up or is gone."""
    _end_with_parent()
    warnings.simplefilter("ignore")  # other libraries' notes to developers
    notes = _Notes()
    logging.getLogger("uniavgen_cli").addHandler(notes)
    engines: dict[str, Engine] = {}
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        started, failure = time.perf_counter(), None
        notes.seen.clear()
        try:
            status = _do(job, journal, engines, number, workers)
        except Exception as error:
            if os.environ.get("UNIAVGEN_DEBUG", "") not in ("", "0"):
                traceback.print_exc()
            known = errors.known(error)
            status, failure = "failed", (type(known).__name__, known.what, known.hint)
        connection.send((status, time.perf_counter() - started, failure, tuple(dict.fromkeys(notes.seen))))


def _end_with_parent() -> None:
    """Nothing outlives a killed parent; Ctrl-C is the parent's alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent.pid:  # it went before that call
        os._exit(1)


def _do(job: Job, journal: Journal, engines: dict[str, "Engine"], number: int, workers: int) -> str:
    with journal.claim(job) as mine:
        if not mine:
            return "busy"
        if journal.done(job):
            return "kept"
        engine = _engine(job.plan.preset, engines, number, workers)
        if engine.weights_hash != job.weights_sha256:
            raise WeightsError("the weights have changed since the jobs were checked", "run the batch again")
        with journal.work(job) as folder, journal.windows(job) as windows:
            clip = engine.run(job.plan, keep_in=windows)
            try:
                if clip.record["inputs"] != job.inputs:
                    raise InputError("a file of it has changed since it was checked", "run the batch again")
                journal.commit(job, clip.save(folder / f"clip{Path(job.name).suffix}"))
            finally:
                clip.close(done=False)
    return "made"


def _engine(preset: "Preset", engines: dict[str, "Engine"], number: int, workers: int) -> "Engine":
    """The engine with the preset's weights: one is kept in memory."""
    key = preset.model_dump_json(exclude=_NOT_OF_THE_WEIGHTS)
    if key not in engines:
        import torch

        from uniavgen_cli.engine.engine import Engine

        if not engines:
            torch.set_num_threads(max(1, torch.get_num_threads() // workers))
            if torch.cuda.is_available():
                torch.cuda.set_device(number % torch.cuda.device_count())
        engines.clear()
        engines[key] = Engine.from_preset(preset)
    return engines[key]


# ---- the parent ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Hand:
    """A worker as its parent sees it."""

    process: BaseProcess
    connection: Connection
    job: Job | None = None


@dataclass
class Batch:
    """A run of `jobs` into the journal's folder; `report` hears of each as it ends."""

    jobs: Sequence[Job]
    journal: Journal
    workers: int
    fail_fast: bool
    report: Callable[[Result], None]
    _hands: list[_Hand] = field(default_factory=list)

    def run(self) -> list[Result]:
        """Do what is not done, in `workers` processes of their own, and tell how every job ended.

        Whatever ends this early, the workers are gone afterwards and only whole clips stay.
        """
        try:
            import fcntl  # noqa: F401
        except ImportError:
            raise UsageError(
                "batch needs file locks, which this system has not", "use Linux or macOS"
            ) from None
        self.journal.prepare()
        results = [Result(job=job, status="kept") for job in self.jobs if self.journal.done(job)]
        for result in results:
            self.journal.forget(result.job)
        for result in results:
            self.report(result)
        done = {result.job.number for result in results}
        # one model after the other, for a worker keeps one
        ready = deque(
            sorted(
                (job for job in self.jobs if job.number not in done),
                key=lambda job: job.plan.preset.model_dump_json(exclude=_NOT_OF_THE_WEIGHTS),
            )
        )
        waiting: list[Job] = []
        try:
            while ready or waiting or any(hand.job for hand in self._hands):
                self._hand_out(ready)
                for result in self._answers():
                    if result.status == "busy":  # another process does it; look again when that one has
                        waiting.append(result.job)
                        continue
                    results.append(result)
                    self.report(result)
                    if result.status == "failed" and self.fail_fast:
                        return results
                if waiting and not ready and not any(hand.job for hand in self._hands):
                    time.sleep(_POLL_S)
                    ready.extend(waiting)
                    waiting.clear()
            return results
        finally:
            self._stop()

    def _hand_out(self, ready: deque[Job]) -> None:
        idle = [hand for hand in self._hands if hand.job is None]
        while ready and (idle or len(self._hands) < self.workers):
            hand = idle.pop() if idle else self._hire()
            hand.job = ready.popleft()
            with suppress(OSError):  # it has died: its connection tells
                hand.connection.send(hand.job)

    def _hire(self) -> _Hand:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_worker, args=(theirs, self.journal, len(self._hands), self.workers), daemon=True
        )
        # inherited: until it is in a group of its own, Ctrl-C would reach it too
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        hand = _Hand(process, ours)
        self._hands.append(hand)
        return hand

    def _answers(self) -> Iterator[Result]:
        """What the workers say, when one says something; a worker that died fails its job."""
        for ready in wait([hand.connection for hand in self._hands if hand.job], timeout=_POLL_S):
            hand = next(hand for hand in self._hands if hand.connection is ready)
            job = hand.job
            assert job is not None
            hand.job = None
            try:
                status, seconds, failure, warnings = hand.connection.recv()
            except (EOFError, OSError):
                self._hands.remove(hand)
                hand.process.join()
                yield Result(job=job, status="failed", error=_died(hand.process.exitcode))
                continue
            error = None if failure is None else getattr(errors, failure[0])(*failure[1:])
            yield Result(job=job, status=status, seconds=seconds, error=error, warnings=warnings)

    def _stop(self) -> None:
        for hand in self._hands:
            hand.connection.close()
            if hand.job is None:
                continue  # it ends by itself, now that nobody is on the line
            try:
                os.killpg(hand.process.pid or 0, signal.SIGKILL)  # with the ffmpeg it runs
            except ProcessLookupError:  # too young to have a group of its own
                hand.process.kill()
        for hand in self._hands:
            hand.process.join(timeout=1.0)
            if hand.process.is_alive():
                hand.process.kill()
                hand.process.join()
            if hand.job is not None:
                shutil.rmtree(self.journal.work_path(hand.job), ignore_errors=True)
        self._hands.clear()


def _died(code: int | None) -> UniAVGenError:
    if code == -signal.SIGKILL:
        return errors.OutOfMemoryError("its worker was killed", "perhaps out of memory: take fewer --workers")
    return UniAVGenError(f"its worker ended with code {code}", "UNIAVGEN_DEBUG=1 may show more")
