"""What a file holds, found out in milliseconds: every check of a given file that needs no model."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from uniavgen_cli.errors import InputError
from uniavgen_cli.media import limits
from uniavgen_cli.media.ffmpeg import GUARDS
from uniavgen_cli.media.image import image_size, read_image

# Containers that write down how long they are: a file that ends before that is cut off.
_SELF_TIMED = {"mov", "matroska", "webm", "wav", "flac", "avi"}
_AGAIN = "copy or download it again, whole"
_TAIL_S = 1.0  # how much of the end is looked at
_HEAD = 1 << 20  # bytes in which an MP3 tells its length, if it does
_MISSING_S = 0.5  # an end nearer than this to the promised one is taken for rounding

_COLORSPACES = {1: "bt709", 5: "bt470bg", 6: "smpte170m", 9: "bt2020nc"}  # the numbers of ITU-T H.273


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A video stream as it is shown: sides in square pixels after rotation, `fps` the average."""

    width: int
    height: int
    fps: float
    num_frames: int
    duration_s: float
    codec: str
    pix_fmt: str
    rotation: int
    colorspace: str = ""
    full_range: bool = False


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """A sound stream."""

    codec: str
    sample_rate: int
    channels: int
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """A still picture, upright."""

    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """What one file holds; times are seconds from the file's first packet, whichever stream that is of."""

    path: Path
    format: str
    duration_s: float
    video: VideoInfo | None = None
    audio: AudioInfo | None = None
    image: ImageInfo | None = None


def shown(path: str | os.PathLike[str]) -> str:
    """A file's name for a one-line message: quoted, with line breaks written out."""
    return repr(os.fspath(path))


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """What the file holds; a cover picture in a sound file is no video, a still picture neither.

    Raises InputError when it is missing, empty, a folder, cut off, larger than `limits` allow or not media.
    """
    path = _existing(path)
    size = image_size(path)
    if size is not None:
        height, width, image_format = size
        return MediaInfo(
            path=path, format=image_format, duration_s=0.0, image=ImageInfo(width=width, height=height)
        )
    with _opened(path) as container:
        known = [s for s in container.streams if s.codec_context is not None]  # whose codec can be decoded
        picture = next(
            (s for s in known if isinstance(s, VideoStream) and not s.disposition & Disposition.attached_pic),
            None,
        )
        sound = next((s for s in known if isinstance(s, AudioStream) and s.codec_context.sample_rate), None)
        if not container.streams:
            raise InputError(f"{shown(path)} is cut off or damaged: it holds no stream", _AGAIN)
        if picture is None and sound is None:
            raise InputError(
                f"{shown(path)} holds neither picture nor sound that can be read",
                "give a video or a sound file",
            )
        _check_limits(container, path, picture, sound)
        frame = None if picture is None else next(container.decode(picture), None)
        ends = _packet_ends(container)
        _check_whole(container, path, ends)
        video = None if picture is None else _video_info(container, path, picture, frame, ends)
        audio = None if sound is None else _audio_info(container, sound, ends)
        if audio is not None and audio.duration_s <= 0:
            audio = None
        if video is None and audio is None:
            raise InputError(f"{shown(path)} is zero seconds long", "copy or download it again")
        for stream in (video, audio):
            if stream is not None:
                _check_length(path, stream.duration_s, getattr(stream, "num_frames", 0))
        return MediaInfo(
            path=path,
            format=container.format.name,
            duration_s=max(stream.duration_s for stream in (video, audio) if stream is not None),
            video=video,
            audio=audio,
        )


def require_video(path: str | os.PathLike[str]) -> MediaInfo:
    """What the file holds, a video stream among it. Raises InputError."""
    info = probe(path)
    if info.image is not None:
        raise InputError(f"{shown(path)} is a picture ({info.format})", "give a video, such as an MP4")
    if info.video is None:
        raise InputError(f"{shown(path)} has sound but no video stream", "give a file with moving pictures")
    return info


def require_sound(path: str | os.PathLike[str]) -> MediaInfo:
    """What the file holds, a sound stream among it. Raises InputError."""
    info = probe(path)
    if info.image is not None:
        raise InputError(
            f"{shown(path)} is a picture ({info.format})", "give a sound file, such as a WAV or MP3"
        )
    if info.audio is None:
        raise InputError(f"{shown(path)} has no sound stream", "give a file with sound")
    return info


def require_image(path: str | os.PathLike[str]) -> MediaInfo:
    """What the picture is, read to its end. Raises InputError."""
    info = probe(path)
    if info.image is None:
        kind = "a video" if info.video is not None else "sound"
        raise InputError(f"{shown(path)} is {kind}, not a picture", "give a JPEG, PNG or WebP picture")
    read_image(path)
    return info


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{shown(path)} is a folder", "give a file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{shown(path)} is not a regular file", "save it to a file first and give that")
        if status.st_size == 0:
            raise InputError(f"{shown(path)} is empty (0 bytes)", "copy or download it again")
        os.fspath(path).encode()  # ffmpeg is handed names as UTF-8
        path.open("rb").close()
    except FileNotFoundError:
        if re.match(r"\w[\w+.-]+:/", os.fspath(path)):
            raise InputError(f"{shown(path)} is an address", "download it and give the file") from None
        folder = shown(path.absolute().parent)
        raise InputError(f"no file {shown(path)}", f"looked in {folder}; check the name") from None
    except UnicodeEncodeError:
        raise InputError(f"{shown(path)}: its name is not UTF-8", "rename it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{shown(path)} can't be opened: {reason}", "check its name and permissions"
        ) from None
    return path


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    # Through a Python file, so that no character of the name can be read as a protocol.
    with path.open("rb") as file:
        try:
            options = dict(GUARDS)
            with av.open(file, "r", container_options=options, metadata_errors="replace") as container:
                yield container
        except (av.FFmpegError, EOFError) as error:
            raise _unreadable(path, error) from None


def _check_limits(
    container: InputContainer, path: Path, picture: VideoStream | None, sound: AudioStream | None
) -> None:
    """Raise InputError for what the file's header alone shows to be too large."""
    name = shown(path)
    if picture is not None:
        pixels = picture.codec_context.width * picture.codec_context.height
        limits.check(name, pixels, limits.MOST_FRAME_PIXELS, "pixels a frame", "scale it down")
        if most := limits.limit(limits.MOST_FRAME_PIXELS):  # the frames themselves may be larger than told
            picture.codec_context.options = {"max_pixels": str(int(most))}
    if sound is not None:
        channels, rate = sound.codec_context.channels, sound.codec_context.sample_rate
        limits.check(name, channels, limits.MOST_CHANNELS, "channels", "mix it down")
        limits.check(name, rate, limits.MOST_SAMPLE_RATE, "samples a second", "resample it")
    seconds = (container.duration or 0) / av.time_base
    _check_length(path, seconds, picture.frames if picture is not None else 0)


def _check_length(path: Path, seconds: float, frames: int) -> None:
    limits.check(shown(path), seconds, limits.MOST_SECONDS, "seconds", "cut it")
    limits.check(shown(path), frames, limits.MOST_FRAMES, "frames", "cut it")


def _unreadable(path: Path, error: Exception) -> InputError:
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        return InputError(f"{shown(path)} is a HEIC picture, which can't be read", "save it as JPEG or PNG")
    if head[4:8] == b"ftyp" or head[:4] in (b"RIFF", b"\x1aE\xdf\xa3", b"OggS", b"fLaC"):
        return InputError(f"{shown(path)} is cut off or damaged ({_reason(error)})", _AGAIN)
    return InputError(
        f"{shown(path)} is not media that can be read ({_reason(error)})",
        "give a video, sound or picture file such as MP4, WAV or JPEG",
    )


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _packet_ends(container: InputContainer) -> dict[int, float]:
    """Where each stream's packets really end, in seconds from the file's start, by stream index.

    Only the last seconds are read, unless the file has no length or can't be sought in.
    """
    start_s = _start_s(container)
    begin_s = max(0.0, (container.duration or 0) / av.time_base - _TAIL_S)
    try:
        container.seek(int((start_s + begin_s) * av.time_base))
    except av.FFmpegError:
        container.seek(int(start_s * av.time_base))
    ends: dict[int, float] = {}
    for packet in container.demux():
        if packet.pts is not None and packet.time_base and packet.size and not packet.is_corrupt:
            end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base) - start_s
            ends[packet.stream.index] = max(end_s, ends.get(packet.stream.index, 0.0))
    return ends


def _check_whole(container: InputContainer, path: Path, ends: dict[int, float]) -> None:
    """Raise InputError when the file ends well before it says it does."""
    promised_s = (container.duration or 0) / av.time_base
    with path.open("rb") as file:
        head = file.read(_HEAD)
    timed = bool(_SELF_TIMED & set(container.format.name.split(",")))
    timed = timed or (container.format.name == "mp3" and (b"Xing" in head or b"Info" in head))
    cut = timed and max(ends.values(), default=0.0) < promised_s - _MISSING_S
    if head[:4] == b"RIFF":  # WAV and AVI count bytes; the largest numbers stand for "not known yet"
        promised = int.from_bytes(head[4:8], "little")
        cut = cut or (promised < 0x7FFF0000 and path.stat().st_size < 0.99 * promised)
    cut = cut or ("mov" in container.format.name and _index_is_cut(path))
    if cut:
        raise InputError(f"{shown(path)} is cut off: its end is missing", _AGAIN)


def _index_is_cut(path: Path) -> bool:
    """Whether an MP4's index (`moov`, ISO 14496-12) ends after the file: streams may be missing from it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        while start + 8 <= size:
            file.seek(start)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:  # the true one follows, in 64 bits
                length = int.from_bytes(head[8:16], "big")
            if head[4:8] == b"moov":
                return start + length > size
            if length < 8:  # 0: to the end of the file
                return False
            start += length
    return False


def _video_info(
    container: InputContainer,
    path: Path,
    stream: VideoStream,
    frame: av.VideoFrame | None,
    ends: dict[int, float],
) -> VideoInfo:
    if frame is None:
        raise InputError(f"{shown(path)} holds no picture that can be decoded", "copy or download it again")
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    if aspect:
        width = max(1, round(width * aspect))
    rotation = round(frame.rotation) % 360
    if rotation % 180 == 90:
        width, height = height, width
    fps = float(stream.average_rate or stream.guessed_rate or stream.base_rate or 0)
    duration_s = _duration_s(container, stream, ends)
    if not 0 < fps < 1000 or duration_s <= 0:
        raise InputError(
            f"{shown(path)} doesn't tell its frame rate or length", "write it anew: ffmpeg -i FILE new.mp4"
        )
    return VideoInfo(
        width=width,
        height=height,
        fps=fps,
        num_frames=stream.frames or max(1, round(duration_s * fps)),
        duration_s=duration_s,
        codec=stream.codec_context.codec.canonical_name,
        pix_fmt=stream.codec_context.pix_fmt or "",
        rotation=rotation,
        colorspace=_COLORSPACES.get(frame.colorspace, ""),
        full_range=frame.color_range == ColorRange.JPEG,
    )


def _audio_info(container: InputContainer, stream: AudioStream, ends: dict[int, float]) -> AudioInfo:
    return AudioInfo(
        codec=stream.codec_context.codec.canonical_name,
        sample_rate=stream.codec_context.sample_rate,
        channels=stream.codec_context.channels,
        duration_s=_duration_s(container, stream, ends),
    )


def _start_s(container: InputContainer) -> float:
    return (container.start_time or 0) / av.time_base


def _duration_s(container: InputContainer, stream: Stream, ends: dict[int, float]) -> float:
    """Where the stream ends, in seconds from the file's start.

    As its packets show, except where the container says it better: an MP4 trims what the packets pad.
    """
    declared_s = (container.duration or 0) / av.time_base
    if stream.duration and stream.time_base:
        declared_s = float(((stream.start_time or 0) + stream.duration) * stream.time_base) - _start_s(
            container
        )
    return declared_s if "mov" in container.format.name else ends.get(stream.index, declared_s)
