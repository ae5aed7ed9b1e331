"""A plan's files and words as the tensors the joint model is conditioned on."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uniavgen_cli.codecs import CaptionReader, PictureCodec
from uniavgen_cli.codecs.mel import PEAK, log_mel, normalize
from uniavgen_cli.codecs.speech_tokens import character_indices, speech_indices, speech_tokens
from uniavgen_cli.data.captions import emotion_named
from uniavgen_cli.data.voice import MANNERS, place_phonemes, retime, time_phonemes
from uniavgen_cli.diffusion.sampler import Given, State
from uniavgen_cli.engine.request import Plan
from uniavgen_cli.engine.seams import evened, pixels_of
from uniavgen_cli.engine.windows import Window
from uniavgen_cli.errors import InputError
from uniavgen_cli.media.audio import read_audio
from uniavgen_cli.media.face import choose_face, detect_faces, face_mask
from uniavgen_cli.media.image import read_image, resized
from uniavgen_cli.media.readers import FrameReader, SoundReader, peak_of, spoken_part
from uniavgen_cli.media.video import iter_frames, require_frames
from uniavgen_cli.models.speech_text import pad_tokens
from uniavgen_cli.models.uniavgen import Conditions
from uniavgen_cli.shapes import tokens_of_frames

logger = logging.getLogger(__name__)
Voice = tuple[Tensor, np.ndarray, str]

REFERENCE_SILENCE_S = 0.3  # keeps the reference apart from what follows it
MARGIN_TOKENS = 2  # of sound beyond a window that its outermost mels look at
QUIET = 10 ** (-40 / 20)  # of the peak: below it a voice is not speaking


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything sampling a window reads, batch 1: latents (1, c, f, h, w), mels (1, t, 80), conditions."""

    given: Given
    positive: Conditions
    negative: Conditions


def prepare(
    plan: Plan, vae: PictureCodec, captions: CaptionReader, vocabulary: Mapping[str, int] | None = None
) -> Prepared:
    """What the first window of a plan reads: all there is of a clip of one window."""
    with Preparer(plan, vae, captions, vocabulary) as preparer:
        return preparer.window(0)


class Preparer:
    """Reads and encodes what a plan's rows of the task table give, window after window.

    The captions come first, so that their encoder is out of memory again before anything large is needed.
    Speech text is counted in `vocabulary`, and without one in characters. `gain` is what the given sound was
    multiplied by. `around` (h, w, 3) uint8 is the picture, as it is written, of which the model sees a
    close-up; None without one. `see` and `hear` are for what it `wants_picture` and `wants_voice` of.
    Raises InputError for what can't be read.
    """

    @torch.inference_mode()
    def __init__(
        self,
        plan: Plan,
        vae: PictureCodec,
        captions: CaptionReader,
        vocabulary: Mapping[str, int] | None = None,
    ) -> None:
        self.plan = plan
        self.vae = vae
        self.vocabulary = vocabulary
        self.caption, self.no_caption = captions.encode([plan.caption, ""]).cpu().split(1)
        self.gain = _gain(plan)
        self.around: np.ndarray | None = None
        self._painted: Tensor | None = None
        self._frames: FrameReader | None = None
        self._sound: SoundReader | None = None
        start = self._given_frames(plan.windows[0])
        self._prior = None if start is None else _face_prior(plan, start[0])
        self._voice = None if plan.voice is None else _reference_voice(plan, plan.voice)
        if plan.row.given_video == "all" and plan.phonemes and plan.request.subtitles is None:
            self.plan = _fitted_to_lips(plan, self._all_frames())

    def __enter__(self) -> "Preparer":
        return self

    def __exit__(self, *error: object) -> None:
        for reader in (self._frames, self._sound):
            if reader is not None:
                reader.close()

    @property
    def wants_picture(self) -> bool:
        """Somebody is in the clip of whom there is no picture."""
        return self.plan.row.given_video == "first" and self._start is None and self._painted is None

    @property
    def wants_voice(self) -> bool:
        """Several windows need one voice, and nobody gave it."""
        plan = self.plan
        return self._voice is None and plan.own_voice is not None and plan.row_of(1).given_audio == "part"

    @property
    def last_picture(self) -> np.ndarray | None:
        """The last frame (h, w, 3) uint8 of a clip that goes on; None of other tasks."""
        return self._start[-1] if self.plan.row.given_video == "part" and self._start is not None else None

    @torch.inference_mode()
    def see(self, painted: Tensor) -> None:
        """Take the person's picture from one that was painted, latents (1, c, 1, h, w)."""
        plan = self.plan
        levels = (self.vae.decode(painted.to(self._device)).float()[0] + 1) * 127.5
        (picture,) = pixels_of(evened(levels, plan.preset.sampling.evened))
        if plan.closeup is not None:
            self.around = plan.closeup.spread(picture)
        self._painted = self._encode(_as_video(resized(picture, plan.spec.height, plan.spec.width)[None]))

    def hear(self, draft: State) -> None:
        """Take the person's voice from a draft of the first window."""
        self._voice = _own_voice(self.plan, draft)

    @torch.inference_mode()
    def window(self, index: int, first: State | None = None, before: State | None = None) -> Prepared:
        """What window `index` reads; windows go up, all but the first with the states of the first and of
        the one before.
        """
        plan = self.plan
        window = plan.windows[index]
        spec = plan.window_spec(window)
        given_video = self._given_video(index, before)
        if plan.row.given_video == "part":
            reference_frame: Tensor | None = self._last_given
        elif index and first is not None:
            reference_frame = first.video[:, :, :1].float()
        else:
            reference_frame = None if given_video is None else given_video[:, :, :1]
        given_audio = self._given_audio(index, before)
        voice = self._voice
        if index and first is not None and self.wants_voice:
            voice = _own_voice(plan, first)  # beside what was said last: a voice nobody gave stays as well
        reference_audio, reference_ids, reference_text = voice or (None, np.zeros(0, np.int64), "")

        said = plan.said_in(window)
        placed = np.zeros(spec.audio_tokens, np.int64)
        if said.phonemes:
            placed = place_phonemes(said.phonemes, spec.audio_tokens) + self._manner
        prior = None if self._prior is None else self._prior.expand(1, spec.latent_frames, -1).contiguous()
        before_it = reference_text + " " if reference_text else ""
        positive_speech, positive_lengths = pad_tokens([self._indices(before_it + said.text)])
        negative_speech, negative_lengths = pad_tokens([self._indices(before_it)])
        return Prepared(
            given=Given(
                reference_frame=reference_frame,
                video=given_video,
                reference_audio=reference_audio,
                audio=given_audio,
            ),
            positive=Conditions(
                caption=self.caption,
                speech=positive_speech,
                speech_lengths=positive_lengths,
                phonemes=torch.from_numpy(np.concatenate([reference_ids, placed]))[None],
                face_prior=prior,
            ),
            negative=Conditions(
                caption=self.no_caption,
                speech=negative_speech,
                speech_lengths=negative_lengths,
                phonemes=torch.from_numpy(np.concatenate([reference_ids, np.zeros_like(placed)]))[None],
                face_prior=prior,
            ),
        )

    @property
    def _manner(self) -> int:
        """What is added to phonemes that are said in the emotion that the prompt asks for."""
        model = self.plan.preset.model
        if not model.get("manners"):
            return 0
        return int(model["phoneme_vocab"]) * MANNERS.index(emotion_named(self.plan.caption))

    def _indices(self, text: str) -> list[int]:
        if self.vocabulary is None:
            return character_indices(text)
        return speech_indices(speech_tokens(text, self.plan.language), self.vocabulary)

    # ---- pictures ----------------------------------------------------------------------------------------

    def _given_video(self, index: int, before: State | None) -> Tensor | None:
        """Latents of the pictures that a window is given, float32 on the CPU; None when there are none."""
        if self.plan.row_of(index).given_video == "part" and before is not None:
            return self._kept_latents(index, before)
        frames = self._given_frames(self.plan.windows[index])
        return self._painted if frames is None else self._encode(_as_video(frames))

    def _kept_latents(self, index: int, before: State) -> Tensor:
        """The latents that the window before hands on; the first of them stands for one frame, not for four.

        So that one is encoded anew, from its frame decoded.
        """
        window, previous = self.plan.windows[index], self.plan.windows[index - 1]
        place = window.latents_after(previous)
        kept = before.video[:, :, place + 1 : place + window.kept_latents].float()
        known = before.video[:, :, : place + 1]
        frame = self.vae.decode(known.float().to(self._device))[:, :, -1:]
        return torch.cat((self._encode(frame.float()), kept), dim=2)

    def _encode(self, video: Tensor) -> Tensor:
        return self.vae.encode(video.to(self._device)).float().cpu()

    @property
    def _device(self) -> torch.device:
        return next(self.vae.parameters()).device

    def _given_frames(self, window: Window) -> np.ndarray | None:
        """Given pictures of a window at the model's size, (1 + 4k, h, w, 3) uint8; None without any."""
        request = self.plan.request
        if self.plan.row.given_video != "all":
            return self._start
        if self._frames is None:
            assert request.video is not None
            self._frames = FrameReader(seen_frames(self.plan))
        frames = self._frames.take(window.start, window.num_frames)
        if not len(frames):
            raise InputError(f"{request.video} holds no picture", "give a video that plays")
        return frames

    def _all_frames(self) -> Iterable[np.ndarray]:
        """Frames of a video that is given whole; a long one is read once more for it, frame by frame."""
        if len(self.plan.windows) > 1:
            return seen_frames(self.plan)
        frames = self._given_frames(self.plan.windows[0])
        assert frames is not None
        return frames

    @cached_property
    def _start(self) -> np.ndarray | None:
        """What a clip begins with that is not given as a whole: a picture, or the end of another clip."""
        plan = self.plan
        spec, request, near = plan.spec, plan.request, plan.closeup
        if plan.row.given_video == "first":
            if request.face is None:
                return None
            picture = read_image(request.face)
            if near is not None:
                picture = resized(picture, near.height, near.width)  # where the exact size is asked for
                self.around = near.around(picture)
                return near.cut(picture, spec.height)[None]
            return resized(picture, spec.height, spec.width)[None]
        assert request.video is not None
        height, width = (spec.height, spec.width) if near is None else (near.height, near.width)
        start_s, count = plan.context_start_s, plan.context_frames
        frames = require_frames(request.video, spec.fps, height, width, start_s=start_s, num_frames=count)
        if near is not None:
            self.around = near.around(frames[-1])
            frames = np.stack([near.cut(frame, spec.height) for frame in frames])
        # a damaged file can hold fewer than it says: the last picture stands still
        return np.concatenate([frames, *[frames[-1:]] * (count - len(frames))])

    @cached_property
    def _last_given(self) -> Tensor:
        """Latents (1, c, 1, h, w) of the last picture of the clip that goes on, the reference of all windows.

        It shows where the person is now; kept from where they were, they would jump back.
        """
        assert self._start is not None
        return self._encode(_as_video(self._start[-1:]))

    # ---- sound -------------------------------------------------------------------------------------------

    def _given_audio(self, index: int, before: State | None) -> Tensor | None:
        """Normalised mels (1, t, 80) of the sound that a window is given; None when there is none."""
        plan = self.plan
        window, row = plan.windows[index], plan.row_of(index)
        spec = plan.window_spec(window)
        if row.given_audio == "all":
            return self._mels_of_window(window)
        if row.given_audio == "part" and before is not None:
            first = window.tokens_after(plan.windows[index - 1], spec.fps, spec.mel_hz)
            kept = tokens_of_frames(window.kept, spec.fps, spec.mel_hz)
            return before.audio[:, first : first + kept].float()
        if row.given_audio == "part":
            return _mels(_context_sound(plan) * self.gain)
        return None

    def _mels_of_window(self, window: Window) -> Tensor:
        """Mels of the given sound; where it goes on beyond the window, they know of that."""
        plan = self.plan
        spec = plan.window_spec(window)
        assert plan.request.sound is not None
        if self._sound is None:
            self._sound = SoundReader(plan.request.sound, spec.sample_rate)
        first = tokens_of_frames(window.start, spec.fps, spec.mel_hz)
        left = min(MARGIN_TOKENS, first)
        right = 0 if window is plan.windows[-1] else MARGIN_TOKENS
        count = left + spec.audio_tokens + right
        samples = self._sound.take((first - left) * spec.hop, count * spec.hop)
        return _mels(samples * self.gain)[:, left : left + spec.audio_tokens]


def seen_frames(plan: Plan) -> Iterator[np.ndarray]:
    """Frames (h, w, 3) uint8 of a video that is given whole, one by one, as the model sees them."""
    spec, near, video = plan.spec, plan.closeup, plan.request.video
    assert video is not None
    if near is None:
        yield from iter_frames(video, spec.fps, spec.height, spec.width)
    else:
        for frame in iter_frames(video, spec.fps, near.height, near.width):
            yield near.cut(frame, spec.height)


def _mels(samples: np.ndarray) -> Tensor:
    return normalize(log_mel(torch.from_numpy(samples)[None]))


def _gain(plan: Plan) -> float:
    """What brings the given sound, as a whole, to the usual peak; 1 without any."""
    if plan.row.given_audio == "none":
        return 1.0
    if plan.row.given_audio == "all":
        assert plan.request.sound is not None
        peak = peak_of(plan.request.sound, plan.spec.sample_rate)
    else:
        peak = float(np.abs(_context_sound(plan)).max(initial=0.0))
    return PEAK / max(peak, 1e-4)


def _context_sound(plan: Plan) -> np.ndarray:
    """The sound at the end of the clip that goes on, padded with silence to its frames."""
    spec, request = plan.spec, plan.request
    assert request.video is not None and plan.media is not None
    wanted = tokens_of_frames(plan.context_frames, spec.fps, spec.mel_hz) * spec.hop
    if plan.media.audio is None:
        return np.zeros(wanted, np.float32)
    samples = read_audio(
        request.video,
        spec.sample_rate,
        start_s=plan.context_start_s,
        duration_s=plan.context_frames / spec.fps,
    )
    return np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))


def _as_video(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1  # f h w c -> 1 c f h w


def _reference_voice(plan: Plan, path: Path) -> Voice:
    """A voice as normalised mels (1, t, 80), the phonemes placed on them, and its text ("" when not told)."""
    spec, preset, text = plan.spec, plan.preset, plan.request.voice_text
    samples, whole_s = spoken_part(path, spec.sample_rate, preset.clip.voice_s, QUIET)
    if not len(samples):
        raise InputError(f"the voice {path} is silent", "give a recording with speech")
    samples = samples * (PEAK / np.abs(samples).max())
    spoken_s = len(samples) / spec.sample_rate
    # up to a whole mel frame, and never shorter than a mel needs
    silence = round(REFERENCE_SILENCE_S * spec.sample_rate) + -len(samples) % spec.hop
    mels = _mels(np.pad(samples, (0, silence)))
    ids = np.zeros(mels.shape[1], np.int64)
    if text and preset.model.get("phoneme_vocab"):
        # times are those of the text at the pace of the recording; what goes past the part listened to is cut
        ids = place_phonemes(retime(time_phonemes(text), 0.0, whole_s), len(ids))
        ids[round(spoken_s * spec.mel_hz) :] = 0
    return mels, ids, text or ""


def _own_voice(plan: Plan, first: State) -> Voice:
    """What the first window, or its draft, said: the voice of a plan that has an `own_voice`."""
    assert plan.own_voice is not None
    spec, (start_s, end_s) = plan.spec, plan.own_voice
    start, end = round(start_s * spec.mel_hz), round(end_s * spec.mel_hz)
    silence = _mels(np.zeros(round(REFERENCE_SILENCE_S * spec.sample_rate), np.float32))
    mels = torch.cat((first.audio[:, start:end].float(), silence), dim=1)
    said = plan.spoken.within(start / spec.mel_hz, end / spec.mel_hz)
    ids = np.zeros(mels.shape[1], np.int64)
    ids[: end - start] = place_phonemes(said.phonemes, end - start)
    return mels, ids, said.text


def _fitted_to_lips(plan: Plan, frames: Iterable[np.ndarray]) -> Plan:
    """The plan with its speech stretched over the span in which the mouth moves, where that is bearable."""
    span = moving_span(frames, plan.spec.fps)
    spoken_s = plan.spoken.end_s - plan.spoken.start_s
    if span is None or not 0.75 * spoken_s <= span[1] - span[0] <= 1.4 * spoken_s:
        return plan
    return replace(plan, spoken=plan.spoken.retimed(*span))


def moving_span(frames: Iterable[np.ndarray], fps: float) -> tuple[float, float] | None:
    """When the lower half of the face begins and stops moving, in seconds; None when it stands still.

    frames (h, w, 3) uint8, of which no more than two are held.
    """
    moved: list[float] = []  # between frame i and i + 1
    before: np.ndarray | None = None
    place: tuple[slice, slice] | None = None
    for frame in frames:
        place = place or _mouth_place(frame)
        mouth = frame[place].astype(np.float32)
        if not mouth.size:
            return None
        if before is not None:
            moved.append(float(np.abs(mouth - before).mean()))
        before = mouth
    if len(moved) < 4 or max(moved) < 0.5:
        return None
    active = np.flatnonzero(np.array(moved) > 0.35 * np.percentile(moved, 90))
    return (float(active[0] / fps), float((active[-1] + 2) / fps)) if len(active) else None


def _mouth_place(frame: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the lower half of the largest face, or about the middle."""
    faces = detect_faces(frame)
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = faces[0].box if faces else (width * 0.25, height * 0.2, width * 0.75, height * 0.9)
    top, bottom = int(y0 + 0.6 * (y1 - y0)), int(min(height, y1 + 1))
    left, right = int(max(0, x0 + 0.2 * (x1 - x0))), int(min(width, x1 - 0.2 * (x1 - x0)))
    return slice(top, bottom), slice(left, right)


def _face_prior(plan: Plan, picture: np.ndarray) -> Tensor | None:
    """Added to the face mask's logits, (1, 1, n): face_prior * (2 * mask - 1); None where that is 0."""
    spec, strength = plan.spec, plan.preset.sampling.face_prior
    faces = detect_faces(picture)
    if faces:
        # a close-up is of the face that was chosen
        box = choose_face(faces, plan.request.face_index if plan.closeup is None else 0).box
    else:
        logger.warning("no face was found; the middle of the picture is taken for it")
        box = (spec.width * 0.25, spec.height * 0.15, spec.width * 0.75, spec.height * 0.85)
    if not strength:
        return None
    mask = torch.from_numpy(face_mask(box, spec.height, spec.width, spec.token_rows, spec.token_columns))
    return (strength * (2 * mask.flatten() - 1)).expand(1, 1, -1)
