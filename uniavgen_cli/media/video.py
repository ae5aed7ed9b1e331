"""Moving pictures in and out; every time is on the file's own clock, on which sound and picture agree."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import ffmpeg as graph
import numpy as np
from ffmpeg.nodes import FilterableStream

from uniavgen_cli.errors import InputError, OutputError
from uniavgen_cli.media import ffmpeg
from uniavgen_cli.media.audio import iter_channels
from uniavgen_cli.media.limits import MOST_FRAMES, limit
from uniavgen_cli.media.output import sound_file, whole_file
from uniavgen_cli.media.pieces import Pieces, Samples, fitted
from uniavgen_cli.media.probe import MediaInfo, VideoInfo, probe, require_sound, require_video, shown

_SCALER = "lanczos+accurate_rnd+full_chroma_int"
_SEEK_MARGIN_S = 10.0  # decoding begins this much early, so that a long-held frame before the start is known
CRF = 18
_GIVEN_QP = 12  # a quantiser, not a rate factor: that one lets noisy pictures fall below the 45 dB promised

# What an MP4 may hold; anything else stays in a container of its own kind, or is encoded anew.
_MP4_VIDEO = {"h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg"}
_MP4_SOUND = {"aac", "mp3", "mp2", "ac3", "eac3", "alac", "opus", "flac"}
_MOV_SOUND = _MP4_SOUND - {"opus", "flac"} | {"pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_f32le"}
_MKV_SOUND = (
    _MP4_SOUND
    | {"dts", "pcm_u8"}
    | {f"pcm_{kind}{bits}le" for kind, bits in (("s", 16), ("s", 24), ("s", 32), ("f", 32), ("f", 64))}
)
_WEBM_SOUND = {"opus", "vorbis"}
_SOUND = {
    ".mp4": _MP4_SOUND,
    ".m4v": _MP4_SOUND,
    ".mov": _MOV_SOUND,
    ".mkv": _MKV_SOUND,
    ".webm": _WEBM_SOUND,
}
_MP4_FAMILY = (".mp4", ".m4v", ".mov")
# ffmpeg's name for each, said because a file is written under a name that doesn't tell
_MUXERS = {".mp4": "mp4", ".m4v": "ipod", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}


# ---- in --------------------------------------------------------------------------------------------------


def iter_frames(
    path: str | os.PathLike[str],
    fps: float,
    height: int,
    width: int,
    start_s: float = 0.0,
    num_frames: int | None = None,
) -> Iterator[np.ndarray]:
    """Frames one by one, as `read_frames` gives them; memory stays at one frame."""
    info = require_video(path)
    seek_s = max(0.0, start_s - _SEEK_MARGIN_S)
    picture = ffmpeg.open_picture(Path(path), **({"ss": seek_s} if seek_s else {}))
    picture = picture.filter("setpts", f"PTS-{start_s - seek_s:.6f}/TB")
    picture = picture.filter("fps", str(_rate(fps)), start_time=0)
    picture = picture.filter("scale", width, height, flags=_SCALER).filter("setsar", 1)
    options: dict[str, Any] = {"format": "rawvideo", "pix_fmt": "rgb24"}
    if most := limit(MOST_FRAMES):  # damaged times would be filled with one frame without end
        num_frames = int(most) if num_frames is None else min(int(most), num_frames)
    if num_frames is not None:
        options["frames:v"] = num_frames
    size = height * width * 3
    try:
        for data in ffmpeg.read(ffmpeg.pipe_output(picture, **options), size):
            if len(data) == size:
                yield np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
    except ffmpeg.FFmpegError as error:
        codec = info.video.codec if info.video else "video"
        raise InputError(
            f"{shown(path)}: its {codec} picture can't be decoded ({error})", "convert it first"
        ) from None


def read_frames(
    path: str | os.PathLike[str],
    fps: float,
    height: int,
    width: int,
    start_s: float = 0.0,
    num_frames: int | None = None,
) -> np.ndarray:
    """uint8 RGB frames (n, height, width, 3): frame k is the one shown at `start_s + k / fps`.

    Any rate, varying rate, rotation, size and depth in; scaled to exactly height x width. At most
    `num_frames`, fewer when the video ends. Raises InputError.
    """
    frames = list(islice(iter_frames(path, fps, height, width, start_s, num_frames), num_frames))
    return np.stack(frames) if frames else np.zeros((0, height, width, 3), dtype=np.uint8)


def require_frames(
    path: str | os.PathLike[str],
    fps: float,
    height: int,
    width: int,
    start_s: float = 0.0,
    num_frames: int | None = None,
) -> np.ndarray:
    """`read_frames`, at least one of them. Raises InputError for a video that shows none."""
    frames = read_frames(path, fps, height, width, start_s, num_frames)
    if not len(frames):
        raise InputError(f"{path} holds no picture", "give a video that plays")
    return frames


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The file's own tags, keys in lower case. Raises InputError when it is not media."""
    info = probe(path)
    if info.image is not None:
        return {}
    # tags in another encoding are no reason to refuse a file
    options = dict(ffmpeg.GUARDS)
    with (
        info.path.open("rb") as file,
        av.open(file, container_options=options, metadata_errors="replace") as container,
    ):
        return {key.lower(): value for key, value in container.metadata.items()}


# ---- out -------------------------------------------------------------------------------------------------


def write_clip(
    path: str | os.PathLike[str],
    frames: np.ndarray | Iterable[np.ndarray],
    samples: Samples,
    fps: float,
    sample_rate: int,
    metadata: dict[str, str] | None = None,
    overwrite: bool = False,
    num_frames: int | None = None,
    crf: int = CRF,
) -> Path:
    """Write H.264 (yuv420p) and AAC; the sound is padded or trimmed to the picture's length.

    `frames` is uint8 RGB (n, h, w, 3), or an iterable of frames with `num_frames` said; `samples` (n,) or
    (n, channels), or an iterable of such pieces. Raises OutputError.
    """
    path = Path(path)
    picture, feed, duration_s = _picture(frames, fps, num_frames)
    with (
        whole_file(path, overwrite) as temporary,
        sound_file(fitted(samples, round(duration_s * sample_rate)), sample_rate) as wav,
    ):
        options = _encode_video(path, crf) | _encode_sound(path, "192k") | _container(path, metadata)
        ffmpeg.run(ffmpeg.write_output([_bt709(picture), ffmpeg.open_sound(wav)], temporary, **options), feed)
    return path


def write_dub(
    path: str | os.PathLike[str],
    source: str | os.PathLike[str],
    samples: Samples,
    sample_rate: int,
    metadata: dict[str, str] | None = None,
    overwrite: bool = False,
    keep_sound: bool = False,
) -> Path:
    """Write the source's own video packets with new sound, padded or trimmed to the source's length.

    `samples` (n,) begin with the file; with `keep_sound` they are mixed over its own sound, at that one's
    rate and with its channels up to two. Raises OutputError when the container can't hold the picture as it
    is: see `dub_container`.
    """
    info, video = probe(source), _video(source)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".mp4", ".m4v") and video.codec not in _MP4_VIDEO:
        raise OutputError(
            f"{shown(path)}: an MP4 can't hold {video.codec} video unchanged",
            f"end it in {dub_container(source)}",
        )
    with whole_file(path, overwrite) as temporary, ExitStack() as stack:
        if keep_sound and info.audio is not None:
            new = stack.enter_context(sound_file(samples, sample_rate))
            sample_rate = info.audio.sample_rate
            samples = _mixed_sound(info, new, round(info.duration_s * sample_rate))
        with sound_file(fitted(samples, round(info.duration_s * sample_rate)), sample_rate) as wav:
            options: dict[str, Any] = {"c:v": "copy", "map_metadata": -1, "map_chapters": -1}
            if video.codec == "hevc" and suffix in _MP4_FAMILY:
                options["tag:v"] = "hvc1"
            options |= _encode_sound(path, "192k") | _container(path, metadata)
            streams = [ffmpeg.open_picture(Path(source), fflags="+genpts"), ffmpeg.open_sound(wav)]
            ffmpeg.run(ffmpeg.write_output(streams, temporary, **options))
        _check_kept(temporary, path, source)
    return path


def dub_container(source: str | os.PathLike[str]) -> str:
    """The ending under which `write_dub` can keep the source's video packets."""
    if _video(source).codec in _MP4_VIDEO:
        return ".mp4"
    suffix = Path(source).suffix.lower()
    return suffix if suffix in (".webm", ".mov") else ".mkv"


def write_animated(
    path: str | os.PathLike[str],
    frames: np.ndarray | Iterable[np.ndarray],
    source_sound: str | os.PathLike[str],
    fps: float,
    metadata: dict[str, str] | None = None,
    overwrite: bool = False,
    num_frames: int | None = None,
    crf: int = CRF,
) -> Path:
    """Write new pictures with the given file's own sound.

    Its packets are copied where the container can hold them; else, and where they are damaged, it becomes AAC
    at 256 kbit/s, or FLAC in an .mkv. Raises InputError, OutputError.
    """
    path = Path(path)
    sound = require_sound(source_sound).audio
    assert sound is not None
    picture, feed, _ = _picture(frames, fps, num_frames)
    with whole_file(path, overwrite) as temporary:
        if sound.codec in _SOUND[path.suffix.lower()] and _copies(Path(source_sound), path):
            encode: dict[str, Any] = {"c:a": "copy"}
        else:
            encode = _encode_sound(path, "256k")
        options = _encode_video(path, crf) | encode | _container(path, metadata) | {"map_metadata": -1}
        streams = [_bt709(picture), ffmpeg.open_sound(Path(source_sound))]
        ffmpeg.run(ffmpeg.write_output(streams, temporary, **options), feed)
    return path


def write_continued(
    path: str | os.PathLike[str],
    given: str | os.PathLike[str],
    frames: np.ndarray | Iterable[np.ndarray],
    samples: Samples,
    fps: float,
    sample_rate: int,
    metadata: dict[str, str] | None = None,
    overwrite: bool = False,
    num_frames: int | None = None,
) -> Path:
    """Write the given clip and then the new frames and samples, at the given size, rate and colours.

    The given picture goes from decoder to encoder without becoming RGB, one frame at a time; its sound keeps
    its rate and up to two channels, sample for sample, padded or trimmed to where its picture ends. `frames`
    at `fps` and mono `samples` (n,) at `sample_rate` are converted to that. Raises InputError, OutputError.
    """
    path = Path(path)
    info, video = probe(given), _video(given)
    new, feed, new_s = _picture(frames, fps, num_frames)
    rate = _rate(video.fps)
    counts = video.num_frames, round(new_s * rate)
    height, width = video.height - video.height % 2, video.width - video.width % 2  # yuv420p has no odd sides
    matrix, colours = _colours(video)
    scaler = {"flags": _SCALER, "out_range": colours["range"]}
    old = ffmpeg.open_picture(Path(given)).filter("fps", str(rate), start_time=0)
    old = old.filter("scale", video.width, video.height, **scaler).filter("format", "yuv420p")
    old = old.filter("crop", width, height, 0, 0)
    new = new.filter("fps", str(rate), start_time=0)
    new = new.filter("scale", width, height, out_color_matrix=matrix, **scaler).filter("format", "yuv420p")
    parts = [
        part.filter("setsar", 1)
        .filter("setparams", **colours)
        .filter("tpad", stop=-1, stop_mode="clone")
        .filter("trim", end_frame=count)
        for part, count in zip((old, new), counts, strict=True)
    ]
    sound_rate = sample_rate if info.audio is None else info.audio.sample_rate
    given_count, count = (round(num / float(rate) * sound_rate) for num in (counts[0], sum(counts)))
    with (
        whole_file(path, overwrite) as temporary,
        sound_file(samples, sample_rate) as new_wav,
        sound_file(
            fitted(_continued_sound(info, new_wav, sound_rate, given_count), count), sound_rate
        ) as wav,
    ):
        options = _encode_video(path, qp=_GIVEN_QP) | _encode_sound(path, "256k")
        options |= _container(path, metadata)
        picture = graph.concat(*parts, n=2, v=1, a=0)
        ffmpeg.run(ffmpeg.write_output([picture, ffmpeg.open_sound(wav)], temporary, **options), feed)
    return path


# ---- parts -----------------------------------------------------------------------------------------------


def _video(source: str | os.PathLike[str]) -> VideoInfo:
    video = require_video(source).video
    assert video is not None
    return video


def _check_kept(written: Path, path: Path, source: str | os.PathLike[str]) -> None:
    """Raise OutputError when a container took packets of the source's picture that no one can play there.

    Or would show what an MP4 hides: packets from before its beginning, on which others rest.
    """
    given, kept = _video(source), None
    with suppress(InputError):
        kept = _video(written)
    hidden = "mov" in probe(source).format and path.suffix.lower() not in _MP4_FAMILY
    if kept is None or kept.codec != given.codec or (hidden and kept.duration_s > given.duration_s + 0.1):
        raise OutputError(
            f"{shown(path)} can't hold the {given.codec} video as it is", f"end it in {dub_container(source)}"
        )


def _rate(fps: float) -> Fraction:
    """The exact rate behind a rounded one: 29.97 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def _picture(
    frames: np.ndarray | Iterable[np.ndarray], fps: float, num_frames: int | None
) -> tuple[FilterableStream, Iterator[np.ndarray], float]:
    """The graph's picture, what is fed to it, and how long it will be in seconds."""
    if num_frames is None:
        if not isinstance(frames, np.ndarray | list | tuple):
            raise ValueError("num_frames must be said for frames that come one by one")
        num_frames = len(frames)
    if num_frames < 1:
        raise ValueError("a clip needs at least one frame")
    source = iter(frames)
    first = next(source)
    height, width, _ = first.shape
    if height % 2 or width % 2:
        raise ValueError(f"{height}x{width} frames can't be written as yuv420p: both sides must be even")

    def feed() -> Iterator[np.ndarray]:
        count = 0
        for frame in chain([first], source):
            if frame.shape != first.shape or frame.dtype != np.uint8:
                raise ValueError(f"frame {count} is {frame.dtype} {frame.shape}, not uint8 {first.shape}")
            count += 1
            yield frame
        if count != num_frames:
            raise ValueError(f"{count} frames came, {num_frames} were said")

    rate = _rate(fps)
    stream = graph.input(
        "pipe:", format="rawvideo", pix_fmt="rgb24", video_size=(width, height), framerate=str(rate)
    )
    return stream.video, feed(), float(num_frames / rate)


def _bt709(picture: FilterableStream) -> FilterableStream:
    """RGB as yuv420p, BT.709 said and meant: players disagree on what an untagged video is."""
    picture = picture.filter("scale", out_color_matrix="bt709", out_range="tv", flags=_SCALER).filter(
        "format", "yuv420p"
    )
    return picture.filter(
        "setparams", color_primaries="bt709", color_trc="bt709", colorspace="bt709", range="tv"
    )


def _colours(video: VideoInfo) -> tuple[str, dict[str, str]]:
    """The matrix that turns RGB into the video's own YUV, and the tags it carries itself."""
    matrix = {"bt709": "bt709", "bt2020nc": "bt2020"}.get(video.colorspace, "bt601")  # untagged: read as 601
    return matrix, {"colorspace": video.colorspace or "unknown", "range": "pc" if video.full_range else "tv"}


def _continued_sound(info: MediaInfo, new: Path, rate: int, count: int) -> Iterator[np.ndarray]:
    """`count` samples of the given sound, where its picture ends, then the new, (n, channels) at `rate`."""
    channels = 1 if info.audio is None else min(2, info.audio.channels)
    silence = iter((np.zeros((0, channels), np.float32),))
    yield from fitted(silence if info.audio is None else iter_channels(info.path, rate, channels), count)
    for piece in iter_channels(new, rate, 1):
        yield np.repeat(piece, channels, axis=1)


def _mixed_sound(info: MediaInfo, new: Path, count: int) -> Iterator[np.ndarray]:
    """`count` samples of a file over the video's own sound, both at their level unless the sum would clip."""
    assert info.audio is not None
    rate, channels = info.audio.sample_rate, min(2, info.audio.channels)

    def mixed() -> Iterator[np.ndarray]:
        old = Pieces(fitted(iter_channels(info.path, rate, channels), count))
        at = 0
        for piece in fitted(iter_channels(new, rate, 1), count):
            yield piece + np.concatenate(old.take(at, len(piece)))
            at += len(piece)

    peak = max((float(np.abs(piece).max(initial=0.0)) for piece in mixed()), default=0.0)
    return (piece / max(1.0, peak) for piece in mixed())


def _encode_video(path: Path, crf: int = CRF, qp: int | None = None) -> dict[str, Any]:
    if path.suffix.lower() == ".webm":
        return {"c:v": "libvpx-vp9", "crf": crf + 8 if qp is None else qp, "b:v": 0}
    return {"c:v": "libx264", "preset": "medium"} | ({"crf": crf} if qp is None else {"qp": qp})


def _encode_sound(path: Path, bitrate: str) -> dict[str, Any]:
    if path.suffix.lower() == ".webm":
        return {"c:a": "libopus", "b:a": "128k"}
    if path.suffix.lower() == ".mkv":  # can't say where the last AAC packet stops: it would end in silence
        return {"c:a": "flac"}
    return {"c:a": "aac", "b:a": bitrate}


def _copies(sound: Path, path: Path) -> bool:
    """Whether the container takes every packet of a file's sound: those of a damaged one it may not."""
    options = {"c:a": "copy", "format": _MUXERS[path.suffix.lower()]}
    try:
        ffmpeg.run(ffmpeg.write_output([ffmpeg.open_sound(sound)], Path(os.devnull), **options))
    except ffmpeg.FFmpegError:
        return False
    return True


def _container(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    """Options of the container: index first, and the metadata under whatever keys."""
    suffix = path.suffix.lower()
    options: dict[str, Any] = {"format": _MUXERS[suffix]}
    options |= {
        f"metadata:g:{index}": f"{key}={value}" for index, (key, value) in enumerate((metadata or {}).items())
    }
    if suffix in _MP4_FAMILY:
        options["movflags"] = "+faststart+use_metadata_tags"
    return options
