"""What was made, from the windows' latents and mels to frames and sound, one window at a time."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from uniavgen_cli.codecs import PictureCodec, SoundCodec
from uniavgen_cli.diffusion.sampler import State
from uniavgen_cli.engine.conditions import seen_frames
from uniavgen_cli.engine.drift import Drift, loudness
from uniavgen_cli.engine.request import Plan
from uniavgen_cli.engine.seams import evened, pixels_of
from uniavgen_cli.engine.steady import LOUDER_DB
from uniavgen_cli.engine.store import Store
from uniavgen_cli.media.closeup import stayed
from uniavgen_cli.media.readers import FrameReader
from uniavgen_cli.shapes import tokens_of_frames

FADE = 240  # samples over which one window's sound gives way to the next
EDGE_TOKENS = 12  # at a window's start and end: its sound there doesn't know what is beyond
SAME_LEVEL = 0.06  # half a dB
HEARD = 1e-5  # mean square of a sound that is not silence
DETAIL_S = 1.0  # over which the details of the last given picture give way where something moves
JUMP_SHARES = (0.4, 0.2)  # of a jump where a clip goes on, that its first frames take back
ROOM_LUFS = -45.0  # what is quieter says nothing
QUIET_HOPS = 3  # 10 ms each: a seam is put where so long is quietest


class Reel:
    """The new part of a clip; `windows` are the states, `autocast` and `device` how they are decoded.
    `last_given` (h, w, 3) uint8 is the last frame of a clip that goes on, as the model saw it; `around` the
    picture of which it saw a close-up, as it is written.

    A clip of one window is decoded once and kept; of a longer one, memory holds a window or two. What was
    seen and heard of each window on the way is in `drift`; `watch` is told how far the pictures have come.
    """

    def __init__(
        self,
        plan: Plan,
        windows: list[State] | Store,
        gain: float,
        *,
        last_given: np.ndarray | None,
        around: np.ndarray | None,
        video_vae: PictureCodec,
        vocoder: SoundCodec,
        autocast: Callable[[], AbstractContextManager[Any]],
        device: str,
    ) -> None:
        self.plan = plan
        self.drift = Drift(plan)
        self._windows = windows
        self._gain = gain
        self._video_vae = video_vae
        self._vocoder = vocoder
        self._autocast = autocast
        self._device = device
        self._kept: dict[str, np.ndarray] = {}
        self._around = around
        self._last_given: Tensor | None = None  # levels (c, h, w)
        if last_given is not None:
            self._last_given = torch.from_numpy(last_given).permute(2, 0, 1).float().to(device)
        self.watch: Callable[[str, int, int], None] = lambda stage, done, total: None

    def decode(self) -> None:
        """Decode a clip of one window now; of a longer one nothing."""
        if len(self.plan.windows) == 1:
            self._kept = {"frames": self._frames_of(0), "sound": np.concatenate(list(self._joined_sound()))}

    def frames(self) -> Iterator[np.ndarray]:
        """Frames (h, w, 3) uint8 at the written size, one by one."""
        if "frames" in self._kept:
            yield from self._kept["frames"]
        elif self.plan.request.task == "dub":
            yield from self._given_frames()
        else:
            count = len(self.plan.windows)
            for index in range(count):
                self.watch("writing" + self.plan.place_of(index), index, count)
                frames = self._frames_of(index)
                self.drift.saw(index, frames)
                yield from frames

    def all_frames(self) -> np.ndarray:
        """Frames (n, h, w, 3) uint8."""
        return self._kept["frames"] if "frames" in self._kept else np.stack(list(self.frames()))

    def sound(self) -> Iterator[np.ndarray]:
        """Samples (n,) float32, piece by piece."""
        if "sound" in self._kept:
            yield self._kept["sound"]
        else:
            yield from self._joined_sound()

    def all_sound(self) -> np.ndarray:
        """Samples (n,) float32."""
        return self._kept["sound"] if "sound" in self._kept else np.concatenate(list(self.sound()))

    # ---- pictures ----------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _frames_of(self, index: int) -> np.ndarray:
        """The frames that a window adds, (n, h, w, 3) uint8."""
        window, given = self.plan.windows[index], self._last_given
        with self._autocast():
            latents = self._windows[index].video.to(self._device)
            video = self._video_vae.decode(latents)[0, :, : window.end - window.start]
        begin = window.kept if given is None else window.kept - 1
        levels = self._evened((video[:, begin:].float() + 1) * 127.5)
        if given is not None:
            if index == 0:
                self._last_decoded = levels[:, 0].clone()
            levels = levels[:, 1:]
            detail(levels, given, self._last_decoded, 0 if index else round(DETAIL_S * self.plan.spec.fps))
            if index == 0:
                levels = joined(levels, given)
        return self._at_written_size(pixels_of(levels))

    def _evened(self, levels: Tensor) -> Tensor:
        reach = self.plan.preset.sampling.evened
        if not reach or self.plan.row.given_video == "all":
            return levels
        return evened(levels, reach, self._first if self._last_given is None else self._last_given)

    @cached_property
    def _first(self) -> Tensor:
        """The picture that the clip begins with, levels (c, h, w)."""
        with self._autocast():
            latents = self._windows[0].video[:, :, :1].to(self._device)
            return (self._video_vae.decode(latents)[0, :, 0].float() + 1) * 127.5

    @cached_property
    def _still(self) -> np.ndarray:
        """What the model saw of the given picture, (h, w, 3) uint8."""
        levels = self._first if self._last_given is None else self._last_given
        return pixels_of(levels[:, None])[0]

    def _at_written_size(self, frames: np.ndarray) -> np.ndarray:
        plan = self.plan
        if plan.closeup is not None and self._around is not None:
            return plan.closeup.laid(frames, self._around, self._still)
        if frames.shape[1:3] == (plan.out_height, plan.out_width):
            return frames
        size = (plan.out_width, plan.out_height)
        return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])

    def _given_frames(self) -> Iterator[np.ndarray]:
        """Of a long video that is dubbed: what the model saw of it, whose latents are not kept."""
        reader = FrameReader(seen_frames(self.plan))
        try:
            for number in range(self.plan.num_frames):
                yield self._at_written_size(reader.take(number, 1))[0]
        finally:
            reader.close()

    # ---- sound -------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _sound_of(self, index: int) -> np.ndarray:
        """All of a window's sound, what it keeps of the one before included, (n,) float32."""
        with self._autocast():
            sound = self._vocoder.decode(self._windows[index].audio.to(self._device))[0]
        return sound.float().cpu().numpy() / self._gain

    def _joined_sound(self) -> Iterator[np.ndarray]:
        """Windows' sound, each going over into the next where what both hold is quietest."""
        plan, spec = self.plan, self.plan.spec
        first, last = (round(n / spec.fps * spec.sample_rate) for n in (plan.context_frames, plan.num_frames))
        at, begin, sound = first, 0, self._sound_of(0)  # `begin` is the sample at which `sound` begins
        ramp = np.linspace(0, 1, FADE, dtype=np.float32)
        level: float | None = None  # of the first window that says something
        for index, window in enumerate(plan.windows):
            tokens = [tokens_of_frames(n, spec.fps, spec.mel_hz) for n in (window.start, window.first_new)]
            start, known = (count * spec.hop for count in tokens)
            if index:
                following = self._sound_of(index)
                low, high = max(at, start + EDGE_TOKENS * spec.hop), known - EDGE_TOKENS * spec.hop
                both = sound[low - begin : high - begin], following[low - start : high - start]
                following = following * _same_level(*both)
                following[known - start :] = as_loud(following[known - start :], level, spec.sample_rate)
                seam = low + _quietest(*both)
                yield sound[at - begin : seam - begin]
                out, into = sound[seam - begin :][:FADE], following[seam - start :][:FADE]
                yield out * (1 - ramp) + into * ramp
                at, begin, sound = seam + FADE, start, following
            own = sound[known - begin :][: round(window.added / spec.fps * spec.sample_rate)]
            self.drift.heard(index, own)
            if level is None:
                level = said_level(own, spec.sample_rate)
        yield np.pad(sound, (0, max(0, last - begin - len(sound))))[at - begin : last - begin]


def detail(levels: Tensor, given: Tensor, decoded: Tensor, fading: int) -> None:
    """Give new frames (c, n, h, w) what the codec lost of the given one (c, h, w), in place; levels to 255.

    They lack it as the given one does as it is `decoded`. Where nothing has moved since it is laid over them,
    and elsewhere over the first `fading` of them, less and less.
    """
    lost, still = given - decoded, decoded.permute(1, 2, 0).cpu().numpy()
    for number, frame in enumerate(levels.unbind(1)):
        shares = torch.from_numpy(stayed(frame.permute(1, 2, 0).cpu().numpy(), still)).to(frame)
        frame += shares.clamp(min=1 - number / fading if number < fading else 0.0) * lost


def joined(levels: Tensor, given: Tensor) -> Tensor:
    """New frames (c, n, h, w) that go on from the given one (c, h, w): the first two share out the jump."""
    new = levels.clone()
    jump = given - new[:, 0]
    for number, share in enumerate(JUMP_SHARES[: new.shape[1]]):
        new[:, number] += share * jump
    return new


def said_level(samples: np.ndarray, sample_rate: int) -> float | None:
    """The loudness of mono samples (n,) in LUFS; None where they are no louder than a room."""
    heard = loudness(samples, sample_rate)
    return heard if heard is not None and heard > ROOM_LUFS else None


def as_loud(samples: np.ndarray, level: float | None, sample_rate: int) -> np.ndarray:
    """What a window says, mono samples (n,), brought to a loudness in LUFS; silence stays what it is.

    Mels of equal power are not equally loud as sound: a loud moment in one window is enough.
    It is raised by 6 dB at most and clips nothing; the change comes over 10 ms.
    """
    if level is None or (own := said_level(samples, sample_rate)) is None:
        return samples
    gain = min(10 ** (min(level - own, LOUDER_DB) / 20), max(1.0, 1 / float(np.abs(samples).max())))
    ramp = np.linspace(1, gain, min(FADE, len(samples)))
    return np.concatenate([samples[: len(ramp)] * ramp, samples[len(ramp) :] * gain]).astype(samples.dtype)


def _same_level(one: np.ndarray, other: np.ndarray) -> float:
    """What makes `other` as loud as `one`, two decodings of the same mels; 1 where they nearly are.

    A vocoder that keeps the peak of what it decodes in bounds makes a window with a loud moment quieter.
    """
    powers = [float(np.square(sound).mean()) for sound in (one, other)]
    if min(powers) < HEARD:
        return 1.0
    ratio = math.sqrt(powers[0] / powers[1])
    return 1.0 if abs(ratio - 1) < SAME_LEVEL else ratio


def _quietest(one: np.ndarray, other: np.ndarray, hop: int = 240) -> int:
    """Where the quietest 30 ms of two sounds (n,) begin, the later of equal ones."""
    count = min(len(one), len(other)) // hop
    energy = sum(np.square(x[: count * hop]).reshape(count, hop).sum(1) for x in (one, other))
    around = np.convolve(energy, np.ones(QUIET_HOPS), mode="valid")
    return hop * (len(around) - 1 - int(around[::-1].argmin()))
