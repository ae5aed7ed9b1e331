"""Classifier-free guidance of both streams, modality-aware."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from uniavgen_cli.diffusion.sampler import Given, State
from uniavgen_cli.models.uniavgen import AudioStream, Conditions, Switches, UniAVGen, VideoStream


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How far the conditional velocity is pushed from the unconditional one: v_u + scale * (v_c - v_u).

    Source: UniAVGen, arXiv 2511.03334, section 3.5; its values are 3, 2, block 11 and 0.5.
    """

    video_scale: float = 1.0  # 1: none
    audio_scale: float = 1.0  # 1: none
    skip_block: int | None = None  # the block the unconditional pass leaves out; None: it runs them all
    modality_fraction: float = 0.0  # share of the steps whose unconditional branches are alone; 0: none
    interval: tuple[float, float] = (0.0, 1.0)  # share of the steps [from, to) that are guided; (0, 1): all

    @property
    def is_neutral(self) -> bool:
        """No unconditional pass is needed."""
        return self.video_scale == self.audio_scale == 1


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one pass of the model reads, and the directions of interaction that run in it."""

    conditions: Conditions
    a2v: bool = True
    v2a: bool = True


def guided(
    model: UniAVGen,
    guidance: Guidance,
    timesteps: tuple[float, ...],
    given: Given,
    conditional: Pass,
    unconditional: Pass,
    *,
    batched: bool,
) -> Callable[[State, float], State]:
    """The `denoise` of a sampler that walks `timesteps`.

    `batched` runs both passes as one batch; the result is the same to rounding.
    """
    steps = len(timesteps) - 1
    apart = {time for i, time in enumerate(timesteps[:-1]) if i < guidance.modality_fraction * steps}
    start, end = (share * steps for share in guidance.interval)
    unguided = {time for i, time in enumerate(timesteps[:-1]) if guidance.is_neutral or not start <= i < end}

    def denoise(state: State, time: float) -> State:
        timestep = torch.full((len(state.video),), time, device=state.video.device)
        streams = given.video_stream(state, timestep), given.audio_stream(state, timestep)
        passes = [conditional]
        if time not in unguided:
            alone = time in apart
            passes.append(
                Pass(
                    conditions=unconditional.conditions,
                    a2v=unconditional.a2v and not alone,
                    v2a=unconditional.v2a and not alone,
                )
            )
        run = _run_batched if batched and len(passes) == 2 else _run_separately
        velocities = [_without_references(out, state) for out in run(model, streams, passes, guidance)]
        if len(passes) == 1:
            return velocities[0]
        with_text, without = velocities
        return State(
            torch.lerp(without.video, with_text.video, guidance.video_scale),
            torch.lerp(without.audio, with_text.audio, guidance.audio_scale),
        )

    return denoise


# Video tokens of a clip up to which one batch is faster: above, a single pass fills the device by itself.
# Measured with nano on a CPU: 336 tokens take 0.75 of the time in bfloat16, the same in float32.
BATCHED_TOKENS = {"cpu": 512, "cuda": 4096}


def batch_passes(device_type: str, num_tokens: int) -> bool:
    """Whether to run both passes of a clip of `num_tokens` video tokens as one batch."""
    return num_tokens <= BATCHED_TOKENS[device_type]


Streams = tuple[VideoStream, AudioStream]


def _run_separately(
    model: UniAVGen, streams: Streams, passes: list[Pass], guidance: Guidance
) -> list[tuple[Tensor, Tensor]]:
    batch = len(streams[0].latents)
    outs = []
    for i, one in enumerate(passes):
        switches = Switches(
            a2v=(one.a2v,) * batch,
            v2a=(one.v2a,) * batch,
            skip_block=guidance.skip_block,
            skipped=(i == 1,) * batch,
        )
        out = model(*streams, one.conditions, switches)
        outs.append((out.video, out.audio))
    return outs


def _run_batched(
    model: UniAVGen, streams: Streams, passes: list[Pass], guidance: Guidance
) -> list[tuple[Tensor, Tensor]]:
    video, audio = streams
    batch = len(video.latents)
    out = model(
        VideoStream(
            latents=_twice(video.latents),
            timesteps=_twice(video.timesteps),
            num_reference=video.num_reference,
            num_given=video.num_given,
        ),
        AudioStream(
            mels=_twice(audio.mels),
            timesteps=_twice(audio.timesteps),
            num_reference=audio.num_reference,
            num_given=audio.num_given,
        ),
        join_conditions(*(one.conditions for one in passes)),
        Switches(
            a2v=tuple(one.a2v for one in passes for _ in range(batch)),
            v2a=tuple(one.v2a for one in passes for _ in range(batch)),
            skip_block=guidance.skip_block,
            skipped=tuple(i == 1 for i in range(2) for _ in range(batch)),
        ),
    )
    return list(zip(out.video.chunk(2), out.audio.chunk(2), strict=True))


def _without_references(velocity: tuple[Tensor, Tensor], state: State) -> State:
    video, audio = velocity
    return State(video[:, :, -state.video.shape[2] :].float(), audio[:, -state.audio.shape[1] :].float())


def _twice(x: Tensor) -> Tensor:
    return torch.cat((x, x))


def join_conditions(first: Conditions, second: Conditions) -> Conditions:
    """Both conditions as one batch; what only one of them has is empty in the other."""

    def optional(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None:
            return None if b is None else torch.cat((torch.zeros_like(b), b))
        return torch.cat((a, torch.zeros_like(a) if b is None else b))

    def padded(a: Tensor, b: Tensor, value: int) -> Tensor:
        missing = a.shape[1] - b.shape[1]
        behind = [0] * 2 * (a.ndim - 2)  # axes after the second stay as they are
        a = functional.pad(a, (*behind, 0, max(0, -missing)), value=value)
        return torch.cat((a, functional.pad(b, (*behind, 0, max(0, missing)), value=value)))

    return Conditions(
        caption=padded(first.caption, second.caption, 0),
        speech=padded(first.speech, second.speech, -1),
        speech_lengths=first.speech_lengths + second.speech_lengths,
        phonemes=optional(first.phonemes, second.phonemes),
        face_prior=optional(first.face_prior, second.face_prior),
    )
