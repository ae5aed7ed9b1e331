"""A clip of any length as windows of the model: where each begins, what it keeps of the one before. No torch.

A window keeps 37 of 81 frames of the one before it, as in the paper's continuation (UniAVGen, arXiv
2511.03334), and so adds 44: 2.75 s of picture and 275 tokens of sound, the same time in both streams.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from uniavgen_cli.shapes import TEMPORAL_STRIDE, latent_frames_of, padded_frames, tokens_of_frames

KEPT_OF = (37, 81)  # frames that are kept, of a window
Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Window:
    """One run of the model. Frames count from the clip's first; of a clip that goes on, from its context's.

    It makes `num_frames` (1 + 4k) frames from `start`, of which the first `kept` are given by the window
    before it (or by the clip that goes on), those up to `end` go into the clip, the rest is thrown away.
    """

    start: int
    kept: int
    end: int
    num_frames: int

    @property
    def first_new(self) -> int:
        """Its first frame that no other window has made."""
        return self.start + self.kept

    @property
    def added(self) -> int:
        """Frames that it makes for the clip."""
        return self.end - self.first_new

    @property
    def kept_latents(self) -> int:
        return latent_frames_of(self.kept)

    def seed(self, seed: int) -> int:
        """The seed of its noise, which needs no window before it; the first window's is the clip's."""
        if not self.start:
            return seed
        return int.from_bytes(hashlib.sha256(f"{seed} {self.start}".encode()).digest()[:7], "big")

    def latents_after(self, other: "Window") -> int:
        """By how many latent frames it begins after `other`."""
        return (self.start - other.start) // TEMPORAL_STRIDE

    def tokens_after(self, other: "Window", fps: int, mel_hz: int) -> int:
        """By how many mel tokens it begins after `other`."""
        return tokens_of_frames(self.start - other.start, fps, mel_hz)


def kept_frames(most: int) -> int:
    """How many frames a window of at most `most` takes from the one before: 37 of 81, whole latent frames."""
    return 1 + (most * KEPT_OF[0] // KEPT_OF[1] - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE


def share_out(
    num_frames: int,
    *,
    fps: int,
    mel_hz: int,
    least: int,
    most: int,
    context: int = 0,
    pauses: Sequence[Span] = (),
) -> tuple[Window, ...]:
    """The windows of a clip of `num_frames`, of which the first `context` are given, in order.

    A window has from `least` to `most` frames. All but the last end in one of the `pauses` (seconds from, to)
    if one is in the second half of what they add. Raises ValueError where both streams can't move on by the
    same time.
    """
    step = math.lcm(TEMPORAL_STRIDE, fps // math.gcd(fps, mel_hz))  # frames that are whole tokens as well
    kept = kept_frames(most)
    if num_frames > most and (most - kept) // step == 0:
        raise ValueError(f"windows of {most} frames that keep {kept} add less than {step}")
    windows: list[Window] = []
    start, given = 0, context
    while num_frames - start > most:
        latest = start + most - (most - kept) % step
        earliest = max(start + kept + step, latest - (most - max(kept, given)) // 2)
        end = _border(earliest, latest, step, fps, pauses)
        windows.append(Window(start=start, kept=given, end=end, num_frames=_size(end - start, least)))
        start, given = end - kept, kept
    windows.append(
        Window(start=start, kept=given, end=num_frames, num_frames=_size(num_frames - start, least))
    )
    return tuple(windows)


def _size(used: int, least: int) -> int:
    return padded_frames(max(used, least))


def _border(earliest: int, latest: int, step: int, fps: int, pauses: Sequence[Span]) -> int:
    """The last frame number in a pause, down from `latest` by whole steps to `earliest`; else `latest`."""
    for end in range(latest, earliest - 1, -step):
        if any(start_s <= end / fps <= end_s for start_s, end_s in pauses):
            return end
    return latest
