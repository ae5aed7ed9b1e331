"""A long clip stays as it began: each window's colours and loudness are brought to those of the first.

Every window is made from the one before, so what one does wrong the next repeats and adds to. Latents are
matched in mean and deviation a channel (AdaIN, arXiv 1703.06868), mels in the loudness of what is said.
"""

import math
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from uniavgen_cli.codecs.mel import FLOOR, bin_edges_hz, denormalize, normalize
from uniavgen_cli.diffusion.sampler import State
from uniavgen_cli.engine.drift import k_weight
from uniavgen_cli.engine.request import Plan
from uniavgen_cli.shapes import tokens_of_frames

MOST_CONTRAST = 1.25  # by which a channel's deviation is changed at most
LOUDER_DB, QUIETER_DB = 6.0, 20.0  # by which a window's sound is changed at most
HEARD_DB, HEARD_TOKENS = -10.0, 40  # 20 dB below what is usually said
GATE_DB = 10.0  # below the mean: what is not counted as speech, as in ITU-R BS.1770


def steadied(plan: Plan, index: int, state: State, first: State) -> State:
    """The state of a window after the first, its own part as even as the first window's; given parts stay."""
    window, row, spec = plan.windows[index], plan.row_of(index), plan.spec
    if row.given_video != "all":
        kept, own = state.video.split(
            [window.kept_latents, state.video.shape[2] - window.kept_latents], dim=2
        )
        state = replace(state, video=torch.cat((kept, matched(own, first.video)), dim=2))
    says = plan.spoken.within(window.first_new / spec.fps, window.end / spec.fps).words
    if row.given_audio != "all" and (says or not plan.spoken.words):
        kept_tokens, begin = (
            tokens_of_frames(n, spec.fps, spec.mel_hz) for n in (window.kept, plan.context_frames)
        )
        kept, own, wanted = state.audio[:, :kept_tokens], state.audio[:, kept_tokens:], first.audio[:, begin:]
        if speaks(own) and speaks(wanted):
            state = replace(state, audio=torch.cat((kept, levelled(own, wanted)), dim=1))
    return state


def matched(latents: Tensor, first: Tensor) -> Tensor:
    """Latents (1, c, f, h, w) with each channel's mean, and nearly its deviation, those of `first`."""
    axes = (2, 3, 4)
    mean, deviation = (f(latents.float(), dim=axes, keepdim=True) for f in (torch.mean, torch.std))
    wanted_mean, wanted = (
        f(first.to(latents).float(), dim=axes, keepdim=True) for f in (torch.mean, torch.std)
    )
    scale = (wanted / deviation.clamp_min(1e-6)).clamp(1 / MOST_CONTRAST, MOST_CONTRAST)
    return ((latents - mean) * scale + wanted_mean).to(latents.dtype)


def levelled(mels: Tensor, first: Tensor) -> Tensor:
    """Normalised mels (1, t, 80) as loud as `first` while something is said, raised by 6 dB at most."""
    change_db = max(-QUIETER_DB, min(LOUDER_DB, level(first) - level(mels)))
    louder = denormalize(mels) + change_db * math.log(10) / 20
    return normalize(louder.clamp_min(math.log(FLOOR))).to(mels.dtype)


def speaks(mels: Tensor) -> bool:
    """Whether something is heard in normalised mels (1, t, 80) for 0.4 s in all."""
    return int((_powers(mels) > 10 ** (HEARD_DB / 10)).sum()) >= HEARD_TOKENS


def level(mels: Tensor) -> float:
    """The loudness of normalised mels (1, t, 80) in dB without pauses; only its differences mean anything."""
    power = _powers(mels)
    said = power[power >= power.mean() * 10 ** (-GATE_DB / 10)]
    return 10 * math.log10(max(float(said.mean()), 1e-12))


def _powers(mels: Tensor) -> Tensor:
    """The power of each token (t,), heard as BS.1770 hears it."""
    power = denormalize(mels.float()).mul(2).exp()  # of a bin: its mean, whatever its width
    return (power * _weights().to(power)).sum(-1).flatten()


@cache
def _weights() -> Tensor:
    """How much each mel bin counts (80,), 1 in the mean: by its width, and by the filters of the standard."""
    lower, centre, upper = (edge.numpy() for edge in bin_edges_hz())
    weights = (upper - lower) * abs(k_weight(centre)) ** 2
    return torch.from_numpy(weights / weights.mean())
