"""People's videos to training clips; scenes that make none are listed with the reason."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen_cli.codecs import PictureCodec
from uniavgen_cli.data import footage, transcripts
from uniavgen_cli.data.dataset import REFERENCE_TOKENS
from uniavgen_cli.data.prepared import How, forget, open_folder, save, shards_of, write_shards
from uniavgen_cli.data.transcripts import Line, Word
from uniavgen_cli.data.voice import check_sayable, place_phonemes, retime, time_phonemes
from uniavgen_cli.errors import InputError
from uniavgen_cli.media.audio import read_audio
from uniavgen_cli.media.closeup import find_closeup, size_to_look
from uniavgen_cli.media.face import MOUTH, part_of
from uniavgen_cli.media.image import resized
from uniavgen_cli.media.probe import MediaInfo, require_video, shown
from uniavgen_cli.media.video import read_frames
from uniavgen_cli.shapes import SIZE_MULTIPLE, ClipSpec, fit_size

ENDINGS = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .wmv .flv .ogv .3gp .gif .mxf .vob".split()
)
CAPTION = "a person is talking"  # where nobody says who is seen
LEAST_PACE, MOST_PACE = 0.35, 2.5  # of the spoken time to that of the same words at an even pace
SILENT_SAMPLES = 7200  # 0.3 s, in which a reference voice ends

Progress = Callable[[str, int, int], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """What a folder holds: clips, the videos they are of, and what was left out of how many videos."""

    clips: int
    videos: int
    left_out: int
    all_videos: int


def prepare(
    source: Path,
    out: Path,
    how: How,
    codec: PictureCodec,
    table: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Made:
    """Make clips of every video under `source` that `out` does not have yet.

    `table` is a CSV of transcripts; without one each video has a .txt beside it. A broken video is listed and
    the next one is taken. Raises InputError without any video, OutputError for a folder of other clips.
    """
    videos = find_videos(source)
    given = None if table is None else transcripts.read_table(table)
    root = source.resolve()
    names = {name for path in videos for name in (path.name, path.relative_to(root).as_posix())}
    for name in sorted(set(given or ()) - names):
        logger.warning("the transcripts name %s, and there is no such video in %s", name, source)
    files = open_folder(out, how)
    for done, path in enumerate(videos):
        progress("preparing", done, len(videos))
        lines: list[Line] | InputError
        try:
            lines = transcripts.read_beside(path) if given is None else _lines_of(given, source, path)
        except InputError as error:
            lines = error
        state = _state(path, lines)
        before = files.get(str(path))
        if before is not None:
            whole = all(shard.is_file() for shard in shards_of(out, before["shards"]))
            if whole and before["state"] == state:
                continue
            forget(out, how, files, str(path))
        try:
            clips, left_out = _clips_of(path, lines, how, codec)
        except (ValueError, ArithmeticError, LookupError) as error:  # odd numbers in a damaged file
            reason = f"it can't be read ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
            clips, left_out = [], [(0.0, 0.0, reason)]
        first = 1 + max((number for entry in files.values() for number in entry["shards"]), default=-1)
        shards = list(write_shards(out, clips, first))
        files[str(path)] = {"state": state, "shards": shards, "clips": len(clips), "left_out": left_out}
        save(out, how, files)
    save(out, how, files)
    progress("preparing", len(videos), len(videos))
    return Made(
        clips=sum(entry["clips"] for entry in files.values()),
        videos=sum(entry["clips"] > 0 for entry in files.values()),
        left_out=sum(len(entry["left_out"]) for entry in files.values()),
        all_videos=len(files),
    )


def find_videos(source: Path) -> list[Path]:
    """The files under a folder that end as videos do, by name. Raises InputError when there are none."""
    if not source.is_dir():
        raise InputError(f"{source} is no folder", "give the folder that your videos are in")
    there = source.resolve().rglob("*")
    found = sorted(path for path in there if path.suffix.lower() in ENDINGS and path.is_file())
    if not found:
        raise InputError(f"there is no video in {source}", f"videos end in {', '.join(sorted(ENDINGS))}")
    return found


# ---- one video -------------------------------------------------------------------------------------------

LeftOut = tuple[float, float, str]  # from, to, why


@dataclass(frozen=True)
class _Clip:
    """One clip before it is encoded: pictures (f, h, w, 3), face boxes (f, 4), sound (n,), words."""

    spec: ClipSpec
    frames: np.ndarray
    boxes: np.ndarray
    samples: np.ndarray
    phonemes: np.ndarray
    words: tuple[Word, ...]  # on the window's clock
    caption: str
    emotion: str


def _clips_of(
    path: Path, lines: list[Line] | InputError, how: How, codec: PictureCodec
) -> tuple[list[dict[str, Any]], list[LeftOut]]:
    """The video's clips, each with `tensors` and `texts`, and what of it is left out."""
    duration_s = 0.0
    try:
        if isinstance(lines, InputError):
            raise lines
        info = require_video(path)
        assert info.video is not None
        duration_s = info.video.duration_s
        if info.audio is None:
            raise InputError("no speech: the file has no sound")
        sound = read_audio(path, how.sample_rate)
        spans = [(a, min(b, duration_s)) for a, b in footage.speech_spans(sound, how.sample_rate)]
        spans = [span for span in spans if span[0] < span[1]]
        words = _words(lines, spans, how)
        cuts = footage.scene_cuts(info, how.fps)
    except InputError as error:
        return [], [(0.0, duration_s, _reason(error, path))]
    windows = footage.windows(spans, duration_s, how.lengths, how.fps, breaks=cuts)
    left_out: list[LeftOut] = list(_unheard(windows, duration_s, how))
    scenes: list[_Clip] = []
    for window in windows:
        try:
            scenes.append(_scene(info, window, words, lines, cuts, sound, how))
        except InputError as error:
            end_s = window.start_s + window.num_frames / how.fps
            left_out.append((window.start_s, end_s, _reason(error, path)))
    if not windows:
        shortest_s = min(how.lengths) / how.fps
        why = f"too short: {duration_s:.2f} s, and a clip takes {shortest_s:.2f} s"
        left_out.append((0.0, duration_s, why))
    clips = [_encoded(scene, _reference_for(i, scenes), codec) for i, scene in enumerate(scenes)]
    return clips, sorted(set(left_out))


def _words(lines: Sequence[Line], spans: Sequence[transcripts.Span], how: How) -> list[Word]:
    if not any(line.text for line in lines):
        raise InputError("no transcript: neither a .txt beside it nor a line in the CSV")
    if how.phonemes:
        check_sayable(" ".join(line.text for line in lines))
    words = transcripts.share_out(lines, spans)
    if not words:
        raise InputError("the transcript's times have no speech in them")
    return words


def _scene(
    info: MediaInfo,
    window: footage.Window,
    words: Sequence[Word],
    lines: Sequence[Line],
    cuts: Sequence[float],
    sound: np.ndarray,
    how: How,
) -> _Clip:
    """The clip of a window. Raises InputError, saying why, when it can't be one."""
    start_s, end_s = window.start_s, window.start_s + window.num_frames / how.fps
    within = [cut for cut in cuts if start_s + 0.5 / how.fps < cut < end_s - 0.5 / how.fps]
    if within:
        raise InputError(f"a scene cut at {within[0]:.2f} s")
    heard = [word for word in words if start_s <= word.middle_s < end_s]
    if not heard:
        raise InputError("no transcript: nobody wrote down what is said here")
    spoken_s, even_s = sum(b - a for a, b in window.spoken), sum(transcripts.say_s(w.text) for w in heard)
    if not LEAST_PACE <= spoken_s / max(even_s, 1e-3) <= MOST_PACE:
        raise InputError(
            f"the transcript does not fit the speech: {len(heard)} words in {spoken_s:.1f} s of it"
        )
    assert info.video is not None
    frames, boxes = _seen(info.path, (info.video.height, info.video.width), window, how)
    spec = ClipSpec(
        num_frames=window.num_frames,
        height=frames.shape[1],
        width=frames.shape[2],
        fps=how.fps,
        sample_rate=how.sample_rate,
    )
    first = round(start_s * how.sample_rate)
    samples = sound[first : first + spec.num_samples]
    samples = np.pad(samples, (0, spec.num_samples - len(samples)))
    heard = [Word(w.text, w.start_s - start_s, w.end_s - start_s) for w in heard]
    line = _line_at(lines, (start_s + end_s) / 2)
    return _Clip(
        spec=spec,
        frames=frames,
        boxes=boxes,
        samples=samples,
        phonemes=_placed(heard, window, spec.audio_tokens) if how.phonemes else np.zeros(spec.audio_tokens),
        words=tuple(heard),
        caption=line.caption or CAPTION,
        emotion=line.emotion or "neutral",
    )


def _seen(
    path: Path, size: tuple[int, int], window: footage.Window, how: How
) -> tuple[np.ndarray, np.ndarray]:
    """A window's frames (n, h, w, 3) as the model sees them, and the boxes (n, 4) of the one face there."""
    count, (height, width) = window.num_frames, fit_size(*size, how.short_side)
    high, broad = size_to_look(*size) if how.closeup else (height, width)
    frames = read_frames(path, how.fps, high, broad, window.start_s, count)
    if len(frames) < count - 2:
        raise InputError(f"the picture ends early: {len(frames)} of {count} frames")
    frames = np.concatenate([frames, np.repeat(frames[-1:], count - len(frames), axis=0)])
    whole = frames if not how.closeup else np.stack([resized(frame, height, width) for frame in frames])
    boxes = footage.one_face(whole, least_height=SIZE_MULTIPLE)
    near = find_closeup(frames[0], how.closeup) if how.closeup else None
    if near is None:
        return whole, boxes
    scale = how.short_side / near.side
    boxes = boxes * np.tile((broad / width, high / height), 2)
    boxes = (boxes - np.tile((near.left, near.top), 2)) * scale
    return np.stack([near.cut(frame, how.short_side) for frame in frames]), boxes


def _placed(words: Sequence[Word], window: footage.Window, num_tokens: int) -> np.ndarray:
    """Phoneme ids on the audio tokens: each span's words are said evenly over what they take of it."""
    placed = np.zeros(num_tokens, np.int64)
    for start_s, end_s in window.spoken:
        span = (start_s - window.start_s, end_s - window.start_s)
        said = [word for word in words if span[0] <= word.middle_s <= span[1]]
        if said:
            first, last = max(span[0], said[0].start_s), min(span[1], said[-1].end_s)
            timed = retime(time_phonemes(" ".join(word.text for word in said)), first, last)
            placed = np.maximum(placed, place_phonemes(timed, num_tokens))
    return placed


def _unheard(windows: Sequence[footage.Window], duration_s: float, how: How) -> Iterable[LeftOut]:
    """The parts long enough for a clip in which nobody speaks."""
    edges = [0.0, *(t for w in windows for t in (w.start_s, w.start_s + w.num_frames / how.fps)), duration_s]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if windows and end - start >= min(how.lengths) / how.fps:
            yield start, end, "no speech here"


def _line_at(lines: Sequence[Line], time_s: float) -> Line:
    def timed(line: Line) -> bool:
        return (line.start_s or 0.0) <= time_s <= (line.end_s if line.end_s is not None else float("inf"))

    return next((line for line in lines if timed(line)), lines[0])


def _reference_for(number: int, scenes: Sequence[_Clip]) -> _Clip | None:
    """Another scene of the same video, in which the same person speaks; None when there is no other."""
    return scenes[(number + 1) % len(scenes)] if len(scenes) > 1 else None


def _encoded(scene: _Clip, reference: _Clip | None, codec: PictureCodec) -> dict[str, Any]:
    """What the model reads of a scene, by the names and types of the arrays in `cache`."""
    import torch

    from uniavgen_cli.data.cache import box_masks, frames_of, mel_of

    spec = scene.spec
    device = next(codec.parameters()).device
    with torch.inference_mode():
        latents = codec.encode(frames_of(scene.frames).to(device))[0].transpose(0, 1).half().cpu()
    mouths = np.array([part_of(tuple(box), MOUTH) for box in scene.boxes])
    voice, voice_ids = torch.zeros(0, 80), np.zeros(0)
    if reference is not None:
        first, last = reference.words[0].start_s, reference.words[-1].end_s
        a, b = (round(max(0.0, t) * spec.mel_hz) for t in (first, last))
        said = reference.samples[a * spec.hop : max(b, a + 10) * spec.hop]
        voice = mel_of(np.pad(said, (0, SILENT_SAMPLES)))[:REFERENCE_TOKENS]
        voice_ids = np.zeros(len(voice))
        ids = reference.phonemes[a : max(b, a + 10)][: len(voice)]
        voice_ids[: len(ids)] = ids
    return {
        "sound": {
            "mel": mel_of(scene.samples).half(),
            "phonemes": torch.from_numpy(scene.phonemes).to(torch.uint8),
            "reference_mel": voice.half(),
            "reference_phonemes": torch.from_numpy(voice_ids).to(torch.uint8),
        },
        "picture": {
            "latents": latents,
            "face_mask": box_masks(scene.boxes, spec, spec.token_rows, spec.token_columns),
            "mouth_mask": box_masks(mouths, spec, spec.latent_height, spec.latent_width),
        },
        "texts": {
            "text": transcripts.joined_text(scene.words),
            "reference_text": "" if reference is None else transcripts.joined_text(reference.words),
            "caption": scene.caption,
            "emotion": scene.emotion,
        },
    }


def _state(path: Path, lines: list[Line] | InputError) -> dict[str, Any]:
    """What tells whether a video or its transcript has changed."""
    said = str(lines) if isinstance(lines, InputError) else json.dumps([asdict(line) for line in lines])
    stat = path.stat()
    return {
        "bytes": stat.st_size,
        "modified": stat.st_mtime_ns,
        "transcript": hashlib.sha256(said.encode()).hexdigest(),
    }


def _lines_of(given: Mapping[str, list[Line]], source: Path, path: Path) -> list[Line]:
    """A video's lines in the CSV, by its path in the folder or its name; else the .txt beside it."""
    inside = path.relative_to(source.resolve()).as_posix()
    return given.get(inside) or given.get(path.name) or transcripts.read_beside(path)


def _reason(error: InputError, path: Path) -> str:
    """An error's line without the name of the file, which stands beside it."""
    return error.what.removeprefix(f"{shown(path)} ").removeprefix(f"{shown(path)}: ")
