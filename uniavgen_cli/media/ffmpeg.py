"""The ffmpeg program: which one, how it is run, and what it may open."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import ffmpeg
import numpy as np
from ffmpeg.nodes import FilterableStream, OutputStream

from uniavgen_cli.errors import UsageError
from uniavgen_cli.media.limits import MOST_FRAME_PIXELS, limit

# Only local files and our own pipes: no address inside a file is ever followed.
PROTOCOLS = "file,pipe"
# Plain media containers: no playlists (HLS, DASH, concat), picture sequences, devices or text.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpeg,mpegts,asf,ogg,mxf,nut,rm,dv,ivf,yuv4mpegpipe,"
    "wav,w64,aiff,au,caf,mp3,flac,aac,ac3,eac3,dts,amr,amrnb,amrwb,wv,ape,tta,voc"
)
GUARDS = {"protocol_whitelist": PROTOCOLS, "format_whitelist": FORMATS}


class FFmpegError(Exception):
    """ffmpeg ended with an error; the text is the last lines it wrote."""


def find_ffmpeg() -> str:
    """The ffmpeg to run: UNIAVGEN_FFMPEG, then PATH, then the one a pip package carries.

    Raises UsageError when none is found, or when UNIAVGEN_FFMPEG names no program.
    """
    chosen = os.environ.get("UNIAVGEN_FFMPEG")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise UsageError(
                f"UNIAVGEN_FFMPEG is {chosen!r}, which is not a program",
                "point it at an ffmpeg executable, or unset it",
            )
        return found
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise UsageError("no ffmpeg found", "pip install imageio-ffmpeg, or set UNIAVGEN_FFMPEG") from None


def open_input(path: Path, **options: object) -> FilterableStream:
    """A graph's input read from `path`, whatever characters its name has; too large a frame is an error."""
    if most := limit(MOST_FRAME_PIXELS):
        options = {"max_pixels": int(most), **options}
    return ffmpeg.input(f"file:{path}", **GUARDS, **options)


def open_picture(path: Path, **options: object) -> FilterableStream:
    """The first moving picture of a file, which is never its cover."""
    return open_input(path, **options)["V:0"]


def open_sound(path: Path, **options: object) -> FilterableStream:
    """The first sound of a file."""
    return open_input(path, **options)["a:0"]


def write_output(streams: list[FilterableStream], path: Path, **options: object) -> OutputStream:
    """A graph's output at `path`; `fflags` keeps random identifiers and dates out of it."""
    return ffmpeg.output(*streams, f"file:{path}", fflags="+bitexact", **options)


def pipe_output(stream: FilterableStream, **options: object) -> OutputStream:
    """A graph's output into `read`."""
    return ffmpeg.output(stream, "pipe:", **options)


@contextmanager
def _running(graph: OutputStream, **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """The running program; ends it on the way out, and raises FFmpegError when it failed by itself."""
    graph = graph.global_args("-hide_banner", "-nostdin", "-loglevel", "error")
    command = ffmpeg.compile(graph, cmd=find_ffmpeg(), overwrite_output=True)
    # stderr goes to a file: a damaged input can fill a pipe that nobody reads, and both would wait for ever.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stderr=log, **pipes)  # type: ignore[call-overload]
        try:
            yield process
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)
            if process.wait() != 0:
                raise FFmpegError(_tail(log))
        except BrokenPipeError:
            process.wait()
            raise FFmpegError(_tail(log)) from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:  # what was left in the buffer; the exit status tells the reason
        pass


def _tail(log: IO[bytes]) -> str:
    """The last two things said, without the addresses of the parts that said them."""
    log.seek(0)
    text = re.sub(r"\[[^\]]* @ 0x[0-9a-f]+\]", "", log.read().decode(errors="replace"))
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(said[-2:]) or "ffmpeg ended without a word"


def run(graph: OutputStream, feed: Iterable[np.ndarray] | None = None) -> None:
    """Run a graph to its end; `feed`'s arrays go to its `pipe:` input. Raises FFmpegError."""
    stdin = subprocess.DEVNULL if feed is None else subprocess.PIPE
    with _running(graph, stdin=stdin, stdout=subprocess.DEVNULL) as process:
        if feed is not None:
            for array in feed:
                process.stdin.write(np.ascontiguousarray(array).data)  # type: ignore[union-attr]


def read(graph: OutputStream, size: int) -> Iterator[bytes]:
    """Pieces of `size` bytes (the last may be shorter) from a graph's `pipe:` output. Raises FFmpegError."""
    with _running(graph, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while piece := process.stdout.read(size):
            yield piece
