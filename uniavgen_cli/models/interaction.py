"""Asymmetric cross-modal interaction: each stream reads the other within its own moment.

Source: UniAVGen, arXiv 2511.03334, section 3.3, arranged so that every token is projected once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from uniavgen_cli.models.alignment import audio_windows, group_sources, video_sources
from uniavgen_cli.models.branch import Modulation, Projections, Samples, pick_samples, project
from uniavgen_cli.models.face_mask import FaceMaskHead
from uniavgen_cli.models.rope import video_table, window_table

MIXED_ROWS = 16_384  # keys held at once for audio tokens between two frames; bounds the memory at full size


@dataclass(frozen=True)
class Grid:
    """The clip's video tokens, reference frame left out."""

    frames: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns


@lru_cache(maxsize=64)
def _windows(num_frames: int, num_tokens: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(audio_windows(num_frames, num_tokens), device=device)  # f w


@dataclass(frozen=True)
class _Groups:
    """`alignment.VideoGroups` as tensors: g shared pictures of up to q queries, m mixed ones of one, the
    way back.

    A picture is a row of weights on the f latent frames and, last, on the bias: what the weights miss of 1.
    """

    shared: Tensor  # g f+1
    queries: Tensor  # g q; a short group repeats its last query
    mixed: Tensor  # m f+1
    mixed_queries: Tensor  # m
    order: Tensor  # where each audio token lies in [g * q | m]


@lru_cache(maxsize=64)
def _groups(num_frames: int, num_tokens: int, first: int, device: torch.device) -> _Groups:
    groups = group_sources(video_sources(num_frames, num_tokens), first)
    longest = max((len(group.tokens) for group in groups.shared), default=0)
    order = {}
    for row, group in enumerate(groups.shared):
        order.update({token: row * longest + i for i, token in enumerate(group.tokens)})
    order.update({token: len(groups.shared) * longest + i for i, (token, _) in enumerate(groups.mixed)})

    def row_of(weights: dict[int, float]) -> list[float]:
        return [*(weights.get(frame, 0.0) for frame in range(num_frames)), 1 - sum(weights.values())]

    def rows(weights: list[dict[int, float]]) -> Tensor:
        values = torch.tensor([row_of(each) for each in weights], dtype=torch.float32, device=device)
        return values.view(-1, num_frames + 1)

    def indices(values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    padded = [[*g.tokens, *[g.tokens[-1]] * (longest - len(g.tokens))] for g in groups.shared]
    with torch.inference_mode(False):
        return _Groups(
            shared=rows([{group.frame: group.weight} for group in groups.shared]),
            queries=indices(padded).view(-1, longest) - first,
            mixed=rows([{s.lower: s.lower_weight, s.upper: s.upper_weight} for _, s in groups.mixed]),
            mixed_queries=indices([token for token, _ in groups.mixed]) - first,
            order=indices([order[token] for token in range(first, num_tokens)]),
        )


class AudioToVideo(Projections):
    """Q: video, K/V: audio. A latent frame's tokens hear the audio around it; holds the layer's mask head."""

    def __init__(self, video_dim: int, num_heads: int, audio_dim: int, *, backend: str) -> None:
        super().__init__(video_dim, num_heads, audio_dim, backend=backend)
        self.mask_head = FaceMaskHead(video_dim)

    def forward(self, video: Tensor, audio: Tensor, mask: Tensor, grid: Grid, first: int) -> Tensor:
        """video (b, f*n, d) and audio (b, a, d_a) of the clip, mask (b, f*n) -> update of frames >= first."""
        windows = _windows(grid.frames, audio.shape[1], video.device)[first:]  # f w
        skipped = first * grid.tokens
        k, v = project(audio, self.k, self.v)  # once a token, before the windows repeat it
        k, v = (x.index_select(1, windows.flatten()).view(-1, windows.shape[1], x.shape[2]) for x in (k, v))
        out = self.attend(
            self.q(video[:, skipped:]).view(-1, grid.tokens, self.q.out_features),  # (b f) n d
            k,  # (b f) w d
            v,
            video_table(self.head_dim, 0, 1, grid.rows, grid.columns, video.device),
            window_table(self.head_dim, windows.shape[1], video.device),
        )
        return self.o(out.view(len(video), -1, self.q.out_features) * mask[:, skipped:, None])


class VideoToAudio(Projections):
    """Q: audio, K/V: video. An audio token sees the one picture of its moment, between two latent frames."""

    def forward(self, audio: Tensor, video: Tensor, mask: Tensor, grid: Grid, first: int) -> Tensor:
        """audio (b, a, d) and video (b, f*n, d_v) of the clip, mask (b, f*n) -> update of tokens >= first."""
        groups = _groups(grid.frames, audio.shape[1], first, audio.device)
        table = video_table(self.head_dim, 0, 1, grid.rows, grid.columns, audio.device)
        source = (video * mask[..., None]).unflatten(1, (grid.frames, -1))  # b f n d_v
        # Projection is linear: once a frame, then mixed, is as good as mixing first.
        kv = torch.cat(project(source, self.k, self.v), dim=-1)  # b f n 2d
        bias = torch.cat((self.k.bias, self.v.bias)).to(kv.dtype).expand(len(kv), 1, grid.tokens, -1)
        frames = torch.cat((kv, bias), dim=1).flatten(2)  # b f+1 n*2d
        q = self.q(audio[:, first:])  # b a d

        def read(queries: Tensor, rows: Tensor) -> Tensor:
            """Queries (g, q) read the g pictures of weights rows (g, f+1) -> (b, g * q, d)."""
            asked = q.index_select(1, queries.flatten()).view(-1, queries.shape[1], q.shape[2])  # (b g) q d
            weights = rows.to(kv.dtype).expand(len(q), -1, -1)
            k, v = (weights @ frames).view(-1, grid.tokens, kv.shape[3]).chunk(2, dim=-1)  # (b g) n d
            return self.attend(asked, k, v, None, table).view(len(q), -1, q.shape[2])

        outs = [read(groups.queries, groups.shared)] if len(groups.shared) else []
        chunk = max(1, MIXED_ROWS // grid.tokens)
        for queries, rows in zip(groups.mixed_queries.split(chunk), groups.mixed.split(chunk), strict=True):
            if len(queries):
                outs.append(read(queries[:, None], rows))
        return self.o(torch.cat(outs, dim=1).index_select(1, groups.order))


@dataclass(frozen=True)
class Clip:
    """What the interaction needs of a clip beside the states: shape, timesteps, and what is given.

    `time` modulates the clip's frames, `prior` (b, f*n) steers the mask; given frames and given tokens, one
    number a sample, take no update.
    """

    grid: Grid
    num_tokens: int
    time: Modulation
    prior: Tensor | None
    given_frames: tuple[int, ...]
    given_tokens: tuple[int, ...]


def interact(
    a2v: AudioToVideo,
    v2a: VideoToAudio,
    video: Tensor,
    audio: Tensor,
    clip: Clip,
    a2v_runs: Sequence[bool],
    v2a_runs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Both directions of one layer, from the states before either update.

    video (b, r*n + f*n, d) and audio (b, r + a, d_a), references first, which take no part. Returns both
    updated and the mask logits (b, f*n), 0 where neither direction runs.
    """
    grid = clip.grid
    picture, sound = video[:, -grid.frames * grid.tokens :], audio[:, -clip.num_tokens :]
    logits = torch.zeros(picture.shape[:2], device=video.device)
    either = pick_samples([a or v for a, v in zip(a2v_runs, v2a_runs, strict=True)])
    if either is None:
        return video, audio, logits
    prior = None if clip.prior is None else clip.prior[either]
    logits[either] = a2v.mask_head(picture[either], clip.time.select(either), prior)
    mask = logits.sigmoid()

    a2v_runs = [on and given < grid.frames for on, given in zip(a2v_runs, clip.given_frames, strict=True)]
    if (samples := pick_samples(a2v_runs)) is not None:
        given = [given for given, on in zip(clip.given_frames, a2v_runs, strict=True) if on]
        update = a2v(picture[samples], sound[samples], mask[samples], grid, min(given))
        video = _add(video, update, samples, [grid.tokens * (frames - min(given)) for frames in given])

    v2a_runs = [on and given < clip.num_tokens for on, given in zip(v2a_runs, clip.given_tokens, strict=True)]
    if (samples := pick_samples(v2a_runs)) is not None:
        given = [given for given, on in zip(clip.given_tokens, v2a_runs, strict=True) if on]
        update = v2a(sound[samples], picture[samples], mask[samples], grid, min(given))
        audio = _add(audio, update, samples, [tokens - min(given) for tokens in given])
    return video, audio, logits


def _add(x: Tensor, update: Tensor, samples: Samples, left_out: list[int]) -> Tensor:
    """Add an update (k, m, d) to the last m tokens of k samples, less the first `left_out` of the m."""
    length = update.shape[1]
    if any(left_out):
        places = torch.arange(length, device=x.device)
        taken = places >= torch.tensor(left_out, device=x.device)[:, None]
        update = update * taken[..., None]
    if len(update) == len(x):
        return torch.cat((x[:, :-length], x[:, -length:] + update), dim=1)
    out = x.clone()
    out[samples, -length:] += update
    return out
