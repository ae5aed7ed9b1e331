"""What the method's interaction and mask are compared with: the same weights, read by other rules.

Global: every token reads the whole other stream, told apart by place and time alone. Symmetric: each latent
frame hears its own span of the sound and nothing around it, each audio token sees the one latent frame of its
moment. The product has the asymmetric form only. After the ablations of UniAVGen (arXiv 2511.03334, tables 2
and 3), whose words leave details open; these are ours.
"""

from functools import lru_cache
from math import ceil, floor

import torch
from torch import Tensor, nn

from uniavgen_cli.models.alignment import pixel_frames, tokens_per_frame
from uniavgen_cli.models.branch import Modulation, project
from uniavgen_cli.models.face_mask import FaceMaskHead
from uniavgen_cli.models.interaction import AudioToVideo, Grid, VideoToAudio
from uniavgen_cli.models.rope import frame_share, frequencies, video_table
from uniavgen_cli.models.uniavgen import UniAVGen
from uniavgen_cli.shapes import TEMPORAL_STRIDE

KINDS = ("global", "symmetric", "asymmetric")
OPEN_LOGIT = 30.0  # of a mask that is 1 everywhere


@lru_cache(maxsize=64)
def clock(head_dim: int, places: tuple[float, ...]) -> Tensor:
    """Turns by time alone: (len(places), 1, head_dim / 2) complex, the rows' and columns' parts still."""
    turning = torch.outer(
        torch.tensor(places, dtype=torch.float64), frequencies(head_dim, frame_share(head_dim))
    )
    angles = torch.cat((turning, turning.new_zeros(len(places), head_dim // 2 - turning.shape[1])), dim=1)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).unsqueeze(1)


def frame_middles(num_frames: int, num_tokens: int) -> tuple[float, ...]:
    """When each latent frame is, in audio tokens."""
    rate = tokens_per_frame(num_frames, num_tokens)
    firsts = (TEMPORAL_STRIDE * (frame - 1) + 1 for frame in range(1, num_frames))
    return (0.5 * rate, *((first + TEMPORAL_STRIDE / 2) * rate for first in firsts))


def video_clock(head_dim: int, grid: Grid, num_tokens: int) -> Tensor:
    """Turns of every video token by its time and place: (f * n, 1, head_dim / 2) complex."""
    space = video_table(head_dim, 0, 1, grid.rows, grid.columns, torch.device("cpu"))
    time = clock(head_dim, frame_middles(grid.frames, num_tokens))
    return time.repeat_interleave(grid.tokens, dim=0) * space.repeat(grid.frames, 1, 1)


@lru_cache(maxsize=64)
def own_spans(num_frames: int, num_tokens: int) -> Tensor:
    """The audio tokens of each latent frame's own time, all spans of one length: (f, w)."""
    rate = tokens_per_frame(num_frames, num_tokens)
    length = min(ceil(TEMPORAL_STRIDE * rate), num_tokens)
    starts = [0, *(floor((TEMPORAL_STRIDE * (frame - 1) + 1) * rate) for frame in range(1, num_frames))]
    return torch.stack([torch.arange(length) + min(start, num_tokens - length) for start in starts])


@lru_cache(maxsize=64)
def own_frames(num_frames: int, num_tokens: int) -> Tensor:
    """The latent frame of each audio token's moment: (t,)."""
    rate, last = tokens_per_frame(num_frames, num_tokens), pixel_frames(num_frames) - 1
    pixels = (min(floor(token / rate), last) for token in range(num_tokens))
    return torch.tensor([-(-pixel // TEMPORAL_STRIDE) for pixel in pixels])


class GlobalAudioToVideo(AudioToVideo):
    def forward(self, video: Tensor, audio: Tensor, mask: Tensor, grid: Grid, first: int) -> Tensor:
        skipped, num_tokens = first * grid.tokens, audio.shape[1]
        out = self.attend(
            self.q(video[:, skipped:]),
            *project(audio, self.k, self.v),
            video_clock(self.head_dim, grid, num_tokens)[skipped:],
            clock(self.head_dim, tuple(float(token) for token in range(num_tokens))),
        )
        return self.o(out * mask[:, skipped:, None])


class SymmetricAudioToVideo(AudioToVideo):
    def forward(self, video: Tensor, audio: Tensor, mask: Tensor, grid: Grid, first: int) -> Tensor:
        spans, skipped = own_spans(grid.frames, audio.shape[1])[first:], first * grid.tokens
        k, v = (x[:, spans].flatten(0, 1) for x in project(audio, self.k, self.v))  # (b f) w d
        out = self.attend(
            self.q(video[:, skipped:]).view(-1, grid.tokens, self.q.out_features),  # (b f) n d
            k,
            v,
            video_table(self.head_dim, 0, 1, grid.rows, grid.columns, video.device),
            clock(self.head_dim, tuple(float(place) for place in range(spans.shape[1]))),
        )
        return self.o(out.view(len(video), -1, self.q.out_features) * mask[:, skipped:, None])


class GlobalVideoToAudio(VideoToAudio):
    def forward(self, audio: Tensor, video: Tensor, mask: Tensor, grid: Grid, first: int) -> Tensor:
        num_tokens = audio.shape[1]
        out = self.attend(
            self.q(audio[:, first:]),
            *project(video * mask[..., None], self.k, self.v),
            clock(self.head_dim, tuple(float(token) for token in range(first, num_tokens))),
            video_clock(self.head_dim, grid, num_tokens),
        )
        return self.o(out)


class SymmetricVideoToAudio(VideoToAudio):
    def forward(self, audio: Tensor, video: Tensor, mask: Tensor, grid: Grid, first: int) -> Tensor:
        seen = own_frames(grid.frames, audio.shape[1])[first:]
        source = (video * mask[..., None]).unflatten(1, (grid.frames, -1))  # b f n d
        k, v = (x[:, seen].flatten(0, 1) for x in project(source, self.k, self.v))  # (b t) n d
        q = self.q(audio[:, first:]).flatten(0, 1).unsqueeze(1)  # (b t) 1 d
        table = video_table(self.head_dim, 0, 1, grid.rows, grid.columns, audio.device)
        return self.o(self.attend(q, k, v, None, table).view(len(audio), len(seen), -1))


class OpenMask(FaceMaskHead):
    """M is 1 everywhere: sound and picture meet in all of the picture."""

    def forward(self, x: Tensor, time: Modulation, prior: Tensor | None = None) -> Tensor:
        return x.new_full(x.shape[:2], OPEN_LOGIT, dtype=torch.float32)


A2V: dict[str, type[nn.Module]] = {
    "global": GlobalAudioToVideo,
    "symmetric": SymmetricAudioToVideo,
    "asymmetric": AudioToVideo,
}
V2A: dict[str, type[nn.Module]] = {
    "global": GlobalVideoToAudio,
    "symmetric": SymmetricVideoToAudio,
    "asymmetric": VideoToAudio,
}


def interacting(model: UniAVGen, a2v: str, v2a: str, *, masked: bool = True) -> UniAVGen:
    """The model with its interaction read by these rules; its weights stay what they are."""
    for layer in model.a2v_blocks:
        layer.__class__ = A2V[a2v]
        if not masked:
            layer.mask_head.__class__ = OpenMask
    for layer in model.v2a_blocks:
        layer.__class__ = V2A[v2a]
    return model
