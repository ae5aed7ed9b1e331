"""Temporary files and folders under their owner's lock: what a killed process left, the next one removes."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = "uniavgen-tmp-"
_TRIES = 3


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder among the system's temporary ones, gone afterwards with all that is in it."""
    with _owned(lambda: Path(tempfile.mkdtemp(prefix=_NAME)), f"{_NAME}*") as path:
        yield path


@contextmanager
def scratch_file(folder: Path) -> Iterator[Path]:
    """An empty file in `folder`, gone afterwards if it is still there.

    Its name is hidden and has no clip's ending: what a killed program leaves is not taken for one.
    """

    def make() -> Path:
        path = folder / f".{_NAME}{uuid.uuid4().hex[:12]}.part"
        path.touch(exist_ok=False)
        return path

    with _owned(make, f".{_NAME}*.part") as path:
        yield path


@contextmanager
def _owned(make: Callable[[], Path], pattern: str) -> Iterator[Path]:
    """What `make` makes, locked: the system frees the lock of a process that died, however it died."""
    path, handle = make(), None
    for _ in range(_TRIES):
        handle = _lock(path)
        if handle is not None:
            break
        if not path.exists():  # swept away by another process before it was locked
            path = make()
    try:
        _sweep(path.parent, pattern)
        yield path
    finally:
        _remove(path)
        if handle is not None:
            os.close(handle)


def _lock(path: Path) -> int | None:
    """A lock on a file or folder; None when it is another's or gone, or where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        except OSError:
            pass
        os.close(handle)
    return None


def _sweep(folder: Path, pattern: str) -> None:
    """Remove what matches and is nobody's any more."""
    for path in folder.glob(pattern):
        handle = _lock(path)
        if handle is not None:
            _remove(path)
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
