"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile

from uniavgen_cli.errors import OutputError
from uniavgen_cli.media.ffmpeg import FFmpegError
from uniavgen_cli.media.pieces import Samples, pieces_of
from uniavgen_cli.media.probe import shown
from uniavgen_cli.media.scratch import scratch_file, scratch_folder

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")


def check_output(
    path: str | os.PathLike[str], overwrite: bool = False, suffixes: tuple[str, ...] = SUFFIXES
) -> Path:
    """The path, when a file could be written there now.

    Raises OutputError when its folder is missing or not writable, its ending is none of `suffixes`, it is a
    folder, or it exists and may not be replaced.
    """
    path = Path(path)
    folder = path.absolute().parent
    if path.suffix.lower() not in suffixes:
        raise OutputError(
            f"{shown(path)} doesn't end in {' '.join(suffixes)}", f"try {shown(path.stem + suffixes[0])}"
        )
    try:
        os.fspath(path).encode()  # ffmpeg is handed names as UTF-8
        if path.is_dir():
            raise OutputError(f"{shown(path)} is a folder", "name a file inside it")
        if path.exists() and not overwrite:
            raise OutputError(f"{shown(path)} exists", "give another name, or --overwrite")
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "doesn't exist"
            raise OutputError(
                f"the folder {shown(folder)} {what}", f"mkdir -p {shown(folder)}, or write elsewhere"
            )
    except UnicodeEncodeError:
        raise OutputError(f"{shown(path)} is not a UTF-8 name", "give another name") from None
    except OSError as error:  # a name too long, a folder that may not be entered
        raise OutputError(
            f"{shown(path)} can't be written: {error.strerror}", "write elsewhere with -o"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {shown(folder)} is not writable", "write elsewhere with -o")
    return path


@contextmanager
def whole_file(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well and deleted when it doesn't.

    Raises OutputError for what `check_output` finds, a full disk and anything else ffmpeg says.
    """
    path = check_output(path, overwrite)
    try:
        with scratch_file(path.absolute().parent) as temporary:
            yield temporary
            check_output(path, overwrite)
            os.replace(temporary, path)
    except FFmpegError as error:
        reason = "No space left on device" if "No space left" in str(error) else str(error)
        raise OutputError(f"{shown(path)} can't be written: {reason}", _hint(reason)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{shown(path)} can't be written: {reason}", _hint(reason)) from None


def _hint(reason: str) -> str:
    if "No space left" in reason:
        return "make room on the disk, or write elsewhere with -o"
    if "Unknown encoder" in reason or "Encoder not found" in reason:
        return (
            "use an ffmpeg that has it: set UNIAVGEN_FFMPEG to the one that pip install imageio-ffmpeg brings"
        )
    return "run `uniavgen doctor` to see which ffmpeg is used"


@contextmanager
def sound_file(samples: Samples, sample_rate: int) -> Iterator[Path]:
    """A temporary file of float samples, for ffmpeg to read beside the picture.

    It is a Wave64: a WAV holds no more than 4 GiB.
    """
    with scratch_folder() as folder:
        path = folder / "sound.w64"
        try:
            _write_sound(path, samples, sample_rate)
        except (soundfile.SoundFileError, AssertionError) as error:  # which asserts that all were written
            raise OutputError(
                f"the folder for temporary files {folder} can't hold the sound ({error})",
                "make room there, or set TMPDIR to another",
            ) from None
        yield path


def _write_sound(path: Path, samples: Samples, sample_rate: int) -> None:
    pieces = pieces_of(samples)
    first = next(pieces, np.zeros(0, np.float32))
    channels = first.shape[1] if first.ndim == 2 else 1
    with soundfile.SoundFile(path, "w", sample_rate, channels, subtype="FLOAT", format="W64") as file:
        for piece in chain([first], pieces):
            file.write(np.clip(piece, -1.0, 1.0))
