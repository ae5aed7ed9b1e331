"""The joint audio-video model: two branches that read each other after some of their blocks.

Source: UniAVGen, arXiv 2511.03334, section 3; modules carry the released checkpoint's names. Axis letters: b
batch, f latent frames, h w latent rows and columns, n tokens a frame, t tokens, d width, c channels, u
distinct timesteps.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from uniavgen_cli.models.branch import (
    Block,
    Context,
    Head,
    Modulation,
    PatchEmbedding,
    Text,
    modulation_of,
    run_block,
    unpatchify,
)
from uniavgen_cli.models.interaction import AudioToVideo, Clip, Grid, VideoToAudio, interact
from uniavgen_cli.models.rope import sequence_table, video_table
from uniavgen_cli.models.speech_text import PlacedPhonemes, SpeechTextEncoder

CLEAN_FLOOR = 0.05  # of t, where clean latents are divided by it


@dataclass(frozen=True, kw_only=True)
class UniAVGenConfig:
    """Sizes of the model, and what its video head gives.

    `interaction_blocks` count from 0, `phoneme_vocab` 0 means no placed phonemes, `manners` 0 that their ids
    tell of no manner of speaking.
    """

    video_dim: int
    video_heads: int
    video_ffn_dim: int
    audio_dim: int
    audio_heads: int
    audio_ffn_dim: int
    num_blocks: int
    interaction_blocks: tuple[int, ...]
    freq_dim: int
    caption_dim: int
    caption_tokens: int
    speech_vocab: int
    speech_text_dim: int
    speech_conv_blocks: int
    video_latent_channels: int
    mel_bins: int = 80
    patch: tuple[int, int, int] = (1, 2, 2)
    phoneme_vocab: int = 0
    manners: int = 0
    clean_video: bool = False  # the video head gives clean latents, and where the reference frame is kept

    def __post_init__(self) -> None:
        # YAML and JSON give lists.
        object.__setattr__(self, "interaction_blocks", tuple(self.interaction_blocks))
        object.__setattr__(self, "patch", tuple(self.patch))
        for stream in ("video", "audio"):
            dim, heads = getattr(self, f"{stream}_dim"), getattr(self, f"{stream}_heads")
            if dim % heads or dim // heads % 2:
                raise ValueError(f"{stream}_dim {dim} is not an even multiple of {stream}_heads {heads}")
        if self.patch[0] != 1:
            raise ValueError(f"patch {self.patch} spans {self.patch[0]} latent frames, not 1")
        beyond = [block for block in self.interaction_blocks if not 0 <= block < self.num_blocks]
        if beyond:
            raise ValueError(f"interaction after block {beyond[0]}, of {self.num_blocks} blocks")


@dataclass(frozen=True, kw_only=True)
class VideoStream:
    """Video latents (b, c, num_reference + f, h, w), timesteps (b, num_reference + f) in 0..1000.

    The first `num_given` of the f frames are conditions and take nothing from the sound; a tuple has one
    number a sample.
    """

    latents: Tensor
    timesteps: Tensor
    num_reference: int = 0
    num_given: int | tuple[int, ...] = 0


@dataclass(frozen=True, kw_only=True)
class AudioStream:
    """Normalised log-mels (b, num_reference + t, mel_bins), timesteps (b, num_reference + t) in 0..1000.

    The first `num_given` of the t tokens are conditions and take nothing from the picture; a tuple has one
    number a sample.
    """

    mels: Tensor
    timesteps: Tensor
    num_reference: int = 0
    num_given: int | tuple[int, ...] = 0


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the clip is of.

    caption (b, up to caption_tokens, caption_dim), the rest is zeros; speech (b, s) indices with -1 for
    filler, of which the first `speech_lengths` are keys; phonemes (b, num_reference + t) placed on the
    audio tokens, 0 for none; face_prior (b, f, n) is added to the face mask's logits.
    """

    caption: Tensor
    speech: Tensor
    speech_lengths: tuple[int, ...]
    phonemes: Tensor | None = None
    face_prior: Tensor | None = None

    def to(self, device: str) -> "Conditions":
        """The same on another device."""
        return on_device(self, device)


Data = TypeVar("Data")


def on_device(data: Data, device: str) -> Data:
    """A dataclass of tensors with every tensor on `device`."""
    tensors = {name: x.to(device) for name, x in vars(data).items() if isinstance(x, Tensor)}
    original: Any = data
    return replace(original, **tensors)


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What runs for which sample: the directions of interaction, and a block that the `skipped` leave out.

    A sample that skips a block also skips the interaction after it. What no sample runs costs nothing.
    """

    a2v: tuple[bool, ...]
    v2a: tuple[bool, ...]
    skip_block: int | None = None
    skipped: tuple[bool, ...] = ()


@dataclass(frozen=True)
class JointOutput:
    """Velocities noise - data of the model's input shapes, reference and given parts included.

    face_mask_logits (b, interactions, f, n): sigmoid gives M; 0 where neither direction ran.
    """

    video: Tensor
    audio: Tensor
    face_mask_logits: Tensor


class UniAVGen(nn.Module):
    """The joint model; `attention` names the backend of every attention."""

    def __init__(self, config: UniAVGenConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        video, audio = config.video_dim, config.audio_dim
        self.patch_embedding = PatchEmbedding(config.video_latent_channels, video, config.patch)
        self.text_embedding_video = _mlp(config.caption_dim, video, nn.GELU("tanh"))
        self.time_embedding = _mlp(config.freq_dim, video, nn.SiLU())
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(video, 6 * video))
        self.blocks = nn.ModuleList(
            Block(video, config.video_heads, config.video_ffn_dim, backend=attention)
            for _ in range(config.num_blocks)
        )
        made_channels = config.video_latent_channels + config.clean_video
        self.head = Head(video, prod(config.patch) * made_channels)

        self.audio_embedding = _mlp(config.mel_bins, audio, nn.GELU("tanh"))
        self.text_embedding = SpeechTextEncoder(
            config.speech_vocab, config.speech_text_dim, config.speech_conv_blocks
        )
        self.text_proj = nn.Linear(config.speech_text_dim, audio, bias=False)
        self.phonemes = None
        if config.phoneme_vocab:
            self.phonemes = PlacedPhonemes(config.phoneme_vocab, audio, config.manners)
        self.time_embedding_audio = _mlp(config.freq_dim, audio, nn.SiLU())
        self.time_projection_audio = nn.Sequential(nn.SiLU(), nn.Linear(audio, 6 * audio))
        self.audio_blocks = nn.ModuleList(
            Block(audio, config.audio_heads, config.audio_ffn_dim, backend=attention)
            for _ in range(config.num_blocks)
        )
        self.head_audio = Head(audio, config.mel_bins)
        # Padded unequal lengths in the released model's training; ours are equal. Kept for its layout.
        self.register_buffer("audio_padding", torch.zeros(audio))

        layers = range(len(config.interaction_blocks))
        self.a2v_blocks = nn.ModuleList(
            AudioToVideo(video, config.video_heads, audio, backend=attention) for _ in layers
        )
        self.v2a_blocks = nn.ModuleList(
            VideoToAudio(audio, config.audio_heads, video, backend=attention) for _ in layers
        )
        self.init_weights()

    def forward(
        self, video: VideoStream, audio: AudioStream, conditions: Conditions, switches: Switches
    ) -> JointOutput:
        """One denoising step of both streams."""
        config = self.config
        grid = self._grid(video)
        x, video_context = self._start_video(video, conditions.caption, grid)  # b (r+f)*n d
        y, audio_context = self._start_audio(audio, conditions)  # b r+t d
        clip = _clip(video, audio, conditions, grid, video_context.time)
        skipped = switches.skipped or (False,) * len(x)

        directions: Iterable[tuple[Any, Any]] = zip(self.a2v_blocks, self.v2a_blocks, strict=True)
        layers = dict(zip(config.interaction_blocks, directions, strict=True))  # block -> both directions
        mask_shape = (grid.frames, grid.tokens)
        logits = []
        for i, (block, audio_block) in enumerate(zip(self.blocks, self.audio_blocks, strict=True)):
            runs = [not (leave_out and i == switches.skip_block) for leave_out in skipped]
            x = run_block(block, x, video_context, runs)
            y = run_block(audio_block, y, audio_context, runs)
            if i in layers:
                a2v_runs = [on and run for on, run in zip(switches.a2v, runs, strict=True)]
                v2a_runs = [on and run for on, run in zip(switches.v2a, runs, strict=True)]
                x, y, mask = interact(*layers[i], x, y, clip, a2v_runs, v2a_runs)
                logits.append(mask.unflatten(1, mask_shape))

        return JointOutput(
            video=self._video_velocity(x, video, video_context.time, grid),
            audio=self.head_audio(y, audio_context.time),
            face_mask_logits=torch.stack(logits, dim=1) if logits else x.new_zeros(len(x), 0, *mask_shape),
        )

    def forward_video(self, video: VideoStream, caption: Tensor) -> Tensor:
        """The video branch alone, as it learns from single pictures: the velocity of video.latents.

        caption (b, up to caption_tokens, caption_dim).
        """
        grid = self._grid(video)
        x, context = self._start_video(video, caption, grid)
        for block in self.blocks:
            x = block(x, context)
        return self._video_velocity(x, video, context.time, grid)

    def forward_audio(self, audio: AudioStream, conditions: Conditions) -> Tensor:
        """The audio branch alone, as in the first stage of training: the velocity of audio.mels."""
        y, context = self._start_audio(audio, conditions)
        for block in self.audio_blocks:
            y = block(y, context)
        return self.head_audio(y, context.time)

    def _grid(self, video: VideoStream) -> Grid:
        frames, height, width = video.latents.shape[2:]
        _, patch_height, patch_width = self.config.patch
        return Grid(frames - video.num_reference, height // patch_height, width // patch_width)

    def _start_video(self, video: VideoStream, caption: Tensor, grid: Grid) -> tuple[Tensor, Context]:
        config = self.config
        x = self.patch_embedding(video.latents)
        # No mask in its cross-attention: the zero rows are keys too.
        caption = functional.pad(caption, (0, 0, 0, config.caption_tokens - caption.shape[1]))
        # The clip's frames are 1 ... f, whether a reference frame stands before them or not.
        first, total = 1 - video.num_reference, video.num_reference + grid.frames
        head_dim = config.video_dim // config.video_heads
        context = Context(
            time=modulation_of(video.timesteps, config.freq_dim, self.time_embedding, self.time_projection),
            table=video_table(head_dim, first, total, grid.rows, grid.columns, x.device),
            text=Text(self.text_embedding_video(caption)),
        )
        return x, context

    def _video_velocity(self, x: Tensor, video: VideoStream, time: Modulation, grid: Grid) -> Tensor:
        """The velocity (b, c, r+f, h, w) of video.latents from the last states x (b, (r+f)*n, d)."""
        shape = (video.num_reference + grid.frames, grid.rows, grid.columns)
        made = unpatchify(self.head(x, time), shape, self.config.patch)
        if not self.config.clean_video:
            return made
        made, kept = made[:, :-1], made[:, -1:].sigmoid()
        if video.num_reference:  # what stands still need not go through a narrow model
            made = torch.lerp(made, video.latents[:, :, :1].to(made), kept)
        # data = latents - t * velocity. Noise fills all of a patch's numbers and a small width can't hold it
        # beside the picture; the picture alone it can (Li and He, arXiv 2511.13720).
        t = (video.timesteps / 1000).clamp(min=CLEAN_FLOOR)[:, None, :, None, None]
        return (video.latents - made) / t

    def _start_audio(self, audio: AudioStream, conditions: Conditions) -> tuple[Tensor, Context]:
        config = self.config
        y = self.audio_embedding(audio.mels).float()
        if self.phonemes is not None:
            nothing = torch.zeros(y.shape[:2], dtype=torch.int64, device=y.device)
            y = y + self.phonemes(nothing if conditions.phonemes is None else conditions.phonemes)
        speech = self.text_proj(self.text_embedding(conditions.speech, conditions.speech_lengths))
        head_dim = config.audio_dim // config.audio_heads
        table = sequence_table(head_dim, y.shape[1], y.device)
        context = Context(
            time=modulation_of(
                audio.timesteps, config.freq_dim, self.time_embedding_audio, self.time_projection_audio
            ),
            table=table,
            text=Text(
                speech,
                lengths=conditions.speech_lengths,
                q_table=table,
                k_table=sequence_table(head_dim, speech.shape[1], y.device),
            ),
        )
        return y, context

    def init_weights(self) -> None:
        """Start from scratch: both heads, the masks' too, at zero, the interaction small."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if name.endswith("head"):
                    nn.init.zeros_(module.weight)
                elif name.startswith("time_"):
                    nn.init.normal_(module.weight, std=0.02)
                elif name.startswith(("a2v_", "v2a_")) and name.endswith(".o"):
                    nn.init.normal_(module.weight, std=1e-3)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, PatchEmbedding):
                nn.init.xavier_uniform_(module.weight.flatten(1))
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if module.padding_idx is not None:
                    nn.init.zeros_(module.weight[module.padding_idx])
            elif isinstance(module, Block | Head):
                nn.init.normal_(module.modulation, std=module.modulation.shape[-1] ** -0.5)


def _mlp(in_dim: int, dim: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, dim), activation, nn.Linear(dim, dim))


def _clip(
    video: VideoStream, audio: AudioStream, conditions: Conditions, grid: Grid, time: Modulation
) -> Clip:
    def per_sample(given: int | tuple[int, ...]) -> tuple[int, ...]:
        return (given,) * len(video.latents) if isinstance(given, int) else given

    return Clip(
        grid=grid,
        num_tokens=audio.mels.shape[1] - audio.num_reference,
        time=time.last_steps(grid.frames),
        prior=None if conditions.face_prior is None else conditions.face_prior.flatten(1),
        given_frames=per_sample(video.num_given),
        given_tokens=per_sample(audio.num_given),
    )
