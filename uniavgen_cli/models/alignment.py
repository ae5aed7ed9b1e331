"""Which audio tokens a latent frame hears, and which latent frames an audio token sees: indices only.

Source: UniAVGen, arXiv 2511.03334, section 3.3, at the rates the released model uses.
"""

from dataclasses import dataclass
from math import ceil, floor

from uniavgen_cli.shapes import TEMPORAL_STRIDE


def tokens_per_frame(num_frames: int, num_tokens: int) -> float:
    """Audio tokens a pixel-rate frame, for `num_frames` latent frames."""
    return num_tokens / pixel_frames(num_frames)


def pixel_frames(num_frames: int) -> int:
    return TEMPORAL_STRIDE * (num_frames - 1) + 1


def audio_windows(num_frames: int, num_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The audio tokens each latent frame attends to, in order; all windows have one length.

    A window is the frame's own span and two pixel frames on both sides. Indices beyond the sound repeat its
    first or last token, so that a token's place in the window keeps its meaning.
    """
    rate = tokens_per_frame(num_frames, num_tokens)
    before, after = floor(2 * rate), ceil(2 * rate)
    spans = [(-before, 1 + after)]
    for frame in range(1, num_frames):
        start = TEMPORAL_STRIDE * (frame - 1) + 1
        end = start + TEMPORAL_STRIDE
        spans.append((floor(start * rate) - before, ceil(end * rate) + after))
    length = max(end - start for start, end in spans[1:] or spans)
    return tuple(
        tuple(min(max(token, 0), num_tokens - 1) for token in range(*_widen(start, end, length, num_tokens)))
        for start, end in spans
    )


def _widen(start: int, end: int, length: int, num_tokens: int) -> tuple[int, int]:
    missing = length - (end - start)
    if start < 0:
        return start - missing, end
    if end >= num_tokens:
        return start, end + missing
    return start - missing // 2, end + missing - missing // 2


@dataclass(frozen=True)
class VideoSource:
    """The video one audio token reads: a weighted sum of the tokens of two latent frames."""

    lower: int
    upper: int
    lower_weight: float
    upper_weight: float


def video_sources(num_frames: int, num_tokens: int) -> tuple[VideoSource, ...]:
    """For each audio token, the latent frames it reads and their weights.

    Weights sum to 1 between two pixel frames; from the last pixel frame on they sum to 2, as the released
    model was trained.
    """
    rate, last = tokens_per_frame(num_frames, num_tokens), pixel_frames(num_frames) - 1
    sources = []
    for token in range(num_tokens):
        place = token / rate
        lower = min(max(floor(place), 0), last)
        upper = min(lower + 1, last)
        lower_weight, upper_weight = 1 - (place - lower), 1 - (upper - place)
        sources.append(VideoSource(_latent(lower), _latent(upper), lower_weight, upper_weight))
    return tuple(sources)


def _latent(pixel_frame: int) -> int:
    return (pixel_frame + TEMPORAL_STRIDE - 1) // TEMPORAL_STRIDE


@dataclass(frozen=True)
class SharedSource:
    """Audio tokens that read one latent frame only, so that its keys serve them all."""

    frame: int
    weight: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class VideoGroups:
    """`video_sources` sorted by what can be shared; `mixed` pairs a token with its own source."""

    shared: tuple[SharedSource, ...]
    mixed: tuple[tuple[int, VideoSource], ...]


def group_sources(sources: tuple[VideoSource, ...], first: int = 0) -> VideoGroups:
    """Group the tokens from `first` on by the latent frame they read; those between two frames stay alone."""
    shared: dict[tuple[int, float], list[int]] = {}
    mixed = []
    for token, source in enumerate(sources[first:], start=first):
        if source.lower == source.upper:
            weight = float(round(source.lower_weight + source.upper_weight))
            shared.setdefault((source.lower, weight), []).append(token)
        else:
            mixed.append((token, source))
    groups = (SharedSource(frame, weight, tuple(tokens)) for (frame, weight), tokens in shared.items())
    return VideoGroups(tuple(groups), tuple(mixed))
