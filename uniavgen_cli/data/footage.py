"""What is in people's videos: where somebody speaks, where scenes change, where the one face is."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from uniavgen_cli.data.transcripts import Span
from uniavgen_cli.errors import InputError
from uniavgen_cli.media.face import Face, detect_faces
from uniavgen_cli.media.probe import MediaInfo
from uniavgen_cli.media.video import iter_frames

LEVEL_HZ = 100
SILENT_DB = -55.0  # of full scale: below it nobody speaks
LEAST_RANGE_DB = 6.0  # speech rises and falls by more, from sound to sound; hum and noise don't
SPEECH_DB = 30.0  # below the loud sounds that the quiet ones are
LEAST_SPEECH_S, LEAST_PAUSE_S = 0.12, 0.3  # shorter is a click, or a stop within a word
LEAD_S, TAIL_S = 0.2, 0.3  # kept of the silence around speech
CUT_SIDE = 48  # pixels of the picture in which scene changes are looked for
CUT_STEP, CUT_RATIO = 14.0, 4.0  # grey levels, and times the usual step, that a scene change is
FACE_EVERY = 4  # frames, as many as share a latent frame
FOUND_SHARE, SECOND_SHARE = 0.7, 0.2  # of the looked-at frames: with a face at least, with two at most


@dataclass(frozen=True)
class Window:
    """A part of a video that becomes one clip: from `start_s`, `num_frames` long; `spoken` lies within it."""

    start_s: float
    num_frames: int
    spoken: tuple[Span, ...]


def speech_spans(samples: np.ndarray, sample_rate: int) -> list[Span]:
    """Where somebody speaks in mono samples (n,), in seconds.

    By the level alone, so music passes for speech. Raises InputError, saying why, where nobody does.
    """
    hop = sample_rate // LEVEL_HZ
    count = len(samples) // hop
    if count < 3 or np.abs(samples).max() < 10 ** (SILENT_DB / 20):
        raise InputError("no speech: the sound is silent")
    power = np.square(samples[: count * hop].astype(np.float64)).reshape(count, hop).mean(1)
    level = 10 * np.log10(np.convolve(power, np.ones(3) / 3, mode="same") + 1e-12)
    floor, loud = np.percentile(level, 10), np.percentile(level, 95)
    if loud < SILENT_DB:
        raise InputError("no speech: the sound is as good as silent")
    if loud - floor < LEAST_RANGE_DB:
        raise InputError("no speech: the sound is steady, a tone or noise")
    threshold = max(loud - SPEECH_DB, min(floor + 8, loud - 12), SILENT_DB)
    spans = _runs(level > threshold)
    merged: list[list[int]] = []
    for start, end in spans:
        if merged and start - merged[-1][1] < LEAST_PAUSE_S * LEVEL_HZ:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    kept = [(a / LEVEL_HZ, b / LEVEL_HZ) for a, b in merged if b - a >= LEAST_SPEECH_S * LEVEL_HZ]
    if not kept:
        raise InputError("no speech: there are clicks alone")
    return kept


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def windows(
    spans: Sequence[Span], duration_s: float, lengths: Sequence[int], fps: int, breaks: Sequence[float] = ()
) -> list[Window]:
    """Windows of the given numbers of frames over all speech, as few as hold it, cut in its pauses.

    Speech without a pause for longer than a window is cut where a window ends. A window reaches over one of
    `breaks` only where what lies before or after it is shorter than the shortest length. Empty when the video
    is shorter than that.
    """
    lengths = sorted(lengths)
    longest_s = lengths[-1] / fps
    parts: list[Span] = []
    for start, end in _parted(spans, breaks):
        pieces = max(1, int(np.ceil((end - start) / longest_s - 1e-6)))
        edges = np.linspace(start, end, pieces + 1)
        parts += list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    groups: list[list[Span]] = []
    for span in parts:
        broken = groups and any(groups[-1][-1][1] <= cut <= span[0] for cut in breaks)
        if groups and not broken and span[1] - groups[-1][0][0] <= longest_s:
            groups[-1].append(span)
        else:
            groups.append([span])
    made = []
    for group in groups:
        low = max([0.0, *(cut for cut in breaks if cut <= group[0][0])])
        high = min([duration_s, *(cut for cut in breaks if cut >= group[-1][1])])
        window = _fitted(group, low, high, lengths, fps) or _fitted(group, 0.0, duration_s, lengths, fps)
        if window is not None:
            made.append(window)
    return made


def _parted(spans: Sequence[Span], breaks: Sequence[float]) -> list[Span]:
    """The spans, cut at the breaks within them; scraps are dropped."""
    parts: list[Span] = []
    for start, end in spans:
        edges = [start, *(cut for cut in sorted(breaks) if start < cut < end), end]
        parts += [(a, b) for a, b in pairwise(edges) if b - a >= LEAST_SPEECH_S or (a, b) == (start, end)]
    return parts


def _fitted(
    group: Sequence[Span], low: float, high: float, lengths: Sequence[int], fps: int
) -> Window | None:
    """The shortest window within low..high that holds the group, else the longest that fits there."""
    first, last = group[0][0], group[-1][1]
    fitting = [n for n in lengths if n / fps <= high - low + 0.5 / fps]
    if not fitting:
        return None
    needed_s = min(last + TAIL_S, high) - max(first - LEAD_S, low)
    num_frames = next((n for n in fitting if n / fps >= needed_s), fitting[-1])
    length_s = num_frames / fps
    start = max(first - LEAD_S, last - length_s)  # the silence before goes first where there is no room
    start = max(low, min(start, high - length_s))
    end = start + length_s
    inside = tuple((max(a, start), min(b, end)) for a, b in group if min(b, end) > max(a, start))
    return Window(start, num_frames, inside)


def scene_cuts(info: MediaInfo, fps: int) -> list[float]:
    """Where the picture changes from one frame to the next as no movement does, in seconds; no fades."""
    assert info.video is not None
    last: np.ndarray | None = None
    steps = [0.0]
    for frame in iter_frames(info.path, fps, CUT_SIDE, CUT_SIDE):
        now = frame.astype(np.float32)
        if last is not None:
            steps.append(float(np.abs(now - last).mean()))
        last = now
    changed = np.array(steps)
    cuts = []
    for i in np.flatnonzero(changed > CUT_STEP):
        around = np.concatenate([changed[max(1, i - 8) : i], changed[i + 1 : i + 9]])
        if changed[i] > CUT_RATIO * (np.median(around) if len(around) else 0.0):
            cuts.append(float(i) / fps)
    return cuts


def one_face(frames: np.ndarray, least_height: float, detector: str = "auto") -> np.ndarray:
    """The box of the one face in each of frames (n, h, w, 3): (n, 4), between looked-at frames by a line.

    Raises InputError, saying why, when there is none, or a second one, or it is lower than `least_height`.
    """
    looked = list(range(0, len(frames), FACE_EVERY))
    found = [detect_faces(frames[i], detector) for i in looked]
    some = [(i, faces) for i, faces in zip(looked, found, strict=True) if faces]
    if len(some) < FOUND_SHARE * len(looked):
        raise InputError(f"no face in {len(looked) - len(some)} of {len(looked)} frames looked at")
    several = max(len(faces) for faces in found)
    if sum(len(faces) > 1 for faces in found) > SECOND_SHARE * len(looked):
        raise InputError(f"{several} faces: a scene has to have one")
    boxes = np.array([_followed(some, number).box for number in range(len(some))])
    height = float(np.median(boxes[:, 3] - boxes[:, 1]))
    if height < least_height:
        raise InputError(f"the face is {height:.0f} pixels high, less than {least_height:g}")
    return np.stack(
        [np.interp(np.arange(len(frames)), [i for i, _ in some], column) for column in boxes.T], axis=1
    )


def _followed(some: Sequence[tuple[int, list[Face]]], number: int) -> Face:
    """Of the faces in a frame the one nearest in size to the largest in all: a false one is small."""
    largest = max(faces[0].area for _, faces in some)
    return min(some[number][1], key=lambda face: abs(face.area - largest))
