"""A plan's files and words as the tensors the joint model is conditioned on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uniavgen_cli.codecs import CaptionReader, PictureCodec
from uniavgen_cli.codecs.mel import PEAK, log_mel, normalize
from uniavgen_cli.codecs.speech_tokens import character_indices, speech_indices, speech_tokens
from uniavgen_cli.data.voice import TimedPhoneme, place_phonemes, retime, time_phonemes
from uniavgen_cli.diffusion.sampler import Given
from uniavgen_cli.engine.request import Plan
from uniavgen_cli.errors import InputError
from uniavgen_cli.media.audio import read_audio
from uniavgen_cli.media.face import choose_face, detect_faces, face_mask
from uniavgen_cli.media.image import read_image
from uniavgen_cli.media.video import read_frames
from uniavgen_cli.models.speech_text import pad_tokens
from uniavgen_cli.models.uniavgen import Conditions
from uniavgen_cli.shapes import ClipSpec, tokens_of_frames

logger = logging.getLogger(__name__)

REFERENCE_SILENCE_S = 0.3  # keeps the reference apart from what follows it
QUIET = 10 ** (-40 / 20)  # of the peak: below it a voice is not speaking


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything sampling reads, batch 1: latents (1, c, f, h, w), mels (1, t, 80), both conditions.

    `gain` is what the given sound was multiplied by.
    """

    given: Given
    positive: Conditions
    negative: Conditions
    gain: float


@torch.inference_mode()
def prepare(
    plan: Plan, vae: PictureCodec, captions: CaptionReader, vocabulary: Mapping[str, int] | None = None
) -> Prepared:
    """Read and encode what the plan's row of the task table gives; InputError for what can't be read.

    The captions come first, so that their encoder is out of memory again before anything large is needed.
    Speech text is counted in `vocabulary`, and without one in characters.
    """
    spec, row, request = plan.spec, plan.row, plan.request
    caption, no_caption = captions.encode([plan.caption, ""]).cpu().split(1)
    frames = _given_frames(plan)
    given_video = prior = None
    if frames is not None:
        prior = _face_prior(plan, frames[0])
        device = next(vae.parameters()).device
        given_video = vae.encode(_as_video(frames).to(device)).float().cpu()

    given_audio, gain = None, 1.0
    if row.given_audio != "none":
        given_audio, gain = _given_sound(plan)
    reference_audio, reference_ids, reference_text = None, np.zeros(0, np.int64), ""
    if plan.voice is not None:
        reference_audio, reference_ids, reference_text = _reference_voice(
            plan, plan.voice, request.voice_text
        )

    phonemes = plan.phonemes
    if row.given_video == "all" and phonemes and frames is not None:
        phonemes = _fit_to_lips(plan, frames)
    placed = (
        place_phonemes(phonemes, spec.audio_tokens) if phonemes else np.zeros(spec.audio_tokens, np.int64)
    )

    def indices(text: str) -> list[int]:
        if vocabulary is None:
            return character_indices(text)
        return speech_indices(speech_tokens(text, plan.language), vocabulary)

    before = reference_text + " " if reference_text else ""
    positive_speech, positive_lengths = pad_tokens([indices(before + plan.speech)])
    negative_speech, negative_lengths = pad_tokens([indices(before)])
    return Prepared(
        given=Given(
            reference_frame=None if given_video is None else given_video[:, :, :1],
            video=given_video,
            reference_audio=reference_audio,
            audio=given_audio,
        ),
        positive=Conditions(
            caption=caption,
            speech=positive_speech,
            speech_lengths=positive_lengths,
            phonemes=torch.from_numpy(np.concatenate([reference_ids, placed]))[None],
            face_prior=prior,
        ),
        negative=Conditions(
            caption=no_caption,
            speech=negative_speech,
            speech_lengths=negative_lengths,
            phonemes=torch.from_numpy(np.concatenate([reference_ids, np.zeros_like(placed)]))[None],
            face_prior=prior,
        ),
        gain=gain,
    )


def _given_frames(plan: Plan) -> np.ndarray | None:
    """The pictures the task gives at the model's size, (1 + 4k, h, w, 3) uint8; None when there are none."""
    spec, request = plan.spec, plan.request
    if plan.row.given_video == "first":
        return None if request.face is None else _resized(read_image(request.face), spec)[None]
    assert request.video is not None
    if plan.row.given_video == "part":
        return read_frames(
            request.video,
            spec.fps,
            spec.height,
            spec.width,
            start_s=plan.context_start_s,
            num_frames=plan.context_frames,
        )
    frames = read_frames(request.video, spec.fps, spec.height, spec.width, num_frames=spec.num_frames)
    if not len(frames):
        raise InputError(f"{request.video} holds no picture", "give a video that plays")
    # the last picture stands still to the end of the model's window
    return np.concatenate([frames, np.repeat(frames[-1:], spec.num_frames - len(frames), axis=0)])


def _resized(picture: np.ndarray, spec: ClipSpec) -> np.ndarray:
    import cv2

    shrinks = picture.shape[0] > spec.height
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    return cv2.resize(picture, (spec.width, spec.height), interpolation=interpolation)


def _as_video(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1  # f h w c -> 1 c f h w


def _given_sound(plan: Plan) -> tuple[Tensor, float]:
    """The given sound as normalised mels (1, t, 80) at the usual peak; all of it is padded to the window."""
    spec, request = plan.spec, plan.request
    if plan.row.given_audio == "all":
        assert request.sound is not None
        samples = read_audio(request.sound, spec.sample_rate)
        wanted = spec.num_samples
    else:
        assert request.video is not None and plan.media is not None
        wanted = tokens_of_frames(plan.context_frames, spec.fps, spec.mel_hz) * spec.hop
        samples = np.zeros(wanted, np.float32)
        if plan.media.audio is not None:
            samples = read_audio(
                request.video,
                spec.sample_rate,
                start_s=plan.context_start_s,
                duration_s=plan.context_frames / spec.fps,
            )
    gain = PEAK / max(float(np.abs(samples).max(initial=0.0)), 1e-4)
    samples = np.pad(samples[:wanted] * gain, (0, max(0, wanted - len(samples))))
    return normalize(log_mel(torch.from_numpy(samples)[None])), gain


def _reference_voice(plan: Plan, path: Path, text: str | None) -> tuple[Tensor, np.ndarray, str]:
    """A voice as normalised mels (1, t, 80), the phonemes placed on them, and its text ("" when not told)."""
    spec, preset = plan.spec, plan.preset
    samples = read_audio(path, spec.sample_rate)
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max(initial=0.0))
    if not len(loud) or np.abs(samples).max() < 1e-4:
        raise InputError(f"the voice {path} is silent", "give a recording with speech")
    samples = samples[loud[0] : loud[-1] + 1]
    samples = samples[: round(preset.clip.voice_s * spec.sample_rate)] * (PEAK / np.abs(samples).max())
    spoken_s = len(samples) / spec.sample_rate
    # up to a whole mel frame, and never shorter than a mel needs
    silence = round(REFERENCE_SILENCE_S * spec.sample_rate) + -len(samples) % spec.hop
    mels = normalize(log_mel(torch.from_numpy(np.pad(samples, (0, silence)))[None]))
    ids = np.zeros(mels.shape[1], np.int64)
    if text and preset.model.get("phoneme_vocab"):
        # times are those of the text at the pace of the recording; what goes past the part listened to is cut
        whole_s = (loud[-1] + 1 - loud[0]) / spec.sample_rate
        ids = place_phonemes(retime(time_phonemes(text), 0.0, whole_s), len(ids))
        ids[round(spoken_s * spec.mel_hz) :] = 0
    return mels, ids, text or ""


def _fit_to_lips(plan: Plan, frames: np.ndarray) -> tuple[TimedPhoneme, ...]:
    """The phonemes stretched over the span in which the mouth moves, where that is a bearable pace."""
    span = moving_span(frames, plan.spec.fps)
    spoken_s = plan.phonemes[-1].end_s - plan.phonemes[0].start_s
    if span is None or not 0.75 * spoken_s <= span[1] - span[0] <= 1.4 * spoken_s:
        return plan.phonemes
    return retime(plan.phonemes, *span)


def moving_span(frames: np.ndarray, fps: float) -> tuple[float, float] | None:
    """When the lower half of the face begins and stops moving, in seconds; None when it stands still.

    frames (n, h, w, 3) uint8.
    """
    if len(frames) < 5:
        return None
    faces = detect_faces(frames[0])
    height, width = frames.shape[1:3]
    x0, y0, x1, y1 = faces[0].box if faces else (width * 0.25, height * 0.2, width * 0.75, height * 0.9)
    top, bottom = int(y0 + 0.6 * (y1 - y0)), int(min(height, y1 + 1))
    left, right = int(max(0, x0 + 0.2 * (x1 - x0))), int(min(width, x1 - 0.2 * (x1 - x0)))
    mouth = frames[:, top:bottom, left:right].astype(np.float32)
    if not mouth[0].size:
        return None
    moved = np.abs(np.diff(mouth, axis=0)).mean((1, 2, 3))  # between frame i and i + 1
    threshold = 0.35 * np.percentile(moved, 90)
    active = np.flatnonzero(moved > threshold)
    if not len(active) or moved.max() < 0.5:
        return None
    return float(active[0] / fps), float((active[-1] + 2) / fps)


def _face_prior(plan: Plan, picture: np.ndarray) -> Tensor | None:
    """Added to the face mask's logits, (1, f, n): face_prior * (2 * mask - 1); None where that is 0."""
    spec, strength = plan.spec, plan.preset.sampling.face_prior
    faces = detect_faces(picture)
    if faces:
        box = choose_face(faces, plan.request.face_index).box
    elif plan.request.require_face:
        raise InputError(
            "no face was found in the picture", "give a clearer one, or leave out --require-face"
        )
    else:
        logger.warning("no face was found; the middle of the picture is taken for it")
        box = (spec.width * 0.25, spec.height * 0.15, spec.width * 0.75, spec.height * 0.85)
    if not strength:
        return None
    mask = torch.from_numpy(face_mask(box, spec.height, spec.width, spec.token_rows, spec.token_columns))
    return (strength * (2 * mask.flatten() - 1)).expand(1, spec.latent_frames, -1).contiguous()
