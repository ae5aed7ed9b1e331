"""Sound in: any codec, rate and channel layout to mono samples."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from uniavgen_cli.errors import InputError
from uniavgen_cli.media import ffmpeg
from uniavgen_cli.media.limits import MOST_SECONDS, limit
from uniavgen_cli.media.probe import require_sound, shown

_BLOCK = 1 << 20


def read_audio(
    path: str | os.PathLike[str],
    sample_rate: int = 24_000,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> np.ndarray:
    """Mono float32 samples (n,) at `sample_rate`, from `start_s` on the file's own clock.

    Sound that begins after the picture is preceded by silence, so that sample 0 belongs to frame 0. Channels
    are mixed at a level that cannot clip. `duration_s` takes at most that much. Raises InputError.
    """
    samples = read_channels(path, sample_rate, 1, start_s, duration_s)
    return samples[:, 0]


def read_channels(
    path: str | os.PathLike[str],
    sample_rate: int,
    channels: int,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> np.ndarray:
    """As `read_audio`, with one or two channels: float32 (n, channels)."""
    pieces = list(iter_channels(path, sample_rate, channels, start_s, duration_s))
    return np.concatenate(pieces) if pieces else np.zeros((0, channels), np.float32)


def iter_audio(path: str | os.PathLike[str], sample_rate: int = 24_000) -> Iterator[np.ndarray]:
    """The samples of `read_audio` piece by piece (n,); memory stays at one piece."""
    return (piece[:, 0] for piece in iter_channels(path, sample_rate, 1))


def iter_channels(
    path: str | os.PathLike[str],
    sample_rate: int,
    channels: int,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> Iterator[np.ndarray]:
    """The samples of `read_channels` piece by piece (n, channels)."""
    require_sound(path)
    # rematrix_maxval: without it a float downmix of two equal channels comes out 3 dB louder
    sound = ffmpeg.open_sound(Path(path)).filter(
        "aresample", sample_rate, **{"async": 1, "first_pts": 0, "rematrix_maxval": 1.0}
    )
    sound = sound.filter("aformat", sample_fmts="flt", channel_layouts="mono" if channels == 1 else "stereo")
    begin = round(start_s * sample_rate)
    trim = {"start_sample": begin}
    if most := limit(MOST_SECONDS):  # damaged times would be filled with silence without end
        duration_s = most if duration_s is None else min(most, duration_s)
    if duration_s is not None:
        trim["end_sample"] = begin + round(duration_s * sample_rate)
    graph = ffmpeg.pipe_output(sound.filter("atrim", **trim), format="f32le", acodec="pcm_f32le")
    try:
        for data in ffmpeg.read(graph, _BLOCK):  # whole samples: its size is a multiple of theirs
            yield np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(-1, channels)
    except ffmpeg.FFmpegError as error:
        raise InputError(
            f"{shown(path)}: its sound can't be decoded ({error})", "convert it to WAV first"
        ) from None
