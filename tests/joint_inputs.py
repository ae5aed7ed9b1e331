"""Random inputs of a tiny joint model, for the tests of models and diffusion."""

import torch
from torch import Tensor

from uniavgen_cli.models.uniavgen import (
    AudioStream,
    Conditions,
    Switches,
    UniAVGen,
    UniAVGenConfig,
    VideoStream,
)

SIZES = dict(
    video_dim=48, video_heads=2, video_ffn_dim=32, audio_dim=24, audio_heads=2, audio_ffn_dim=40,
    num_blocks=3, interaction_blocks=(0, 1), freq_dim=16, caption_dim=8, caption_tokens=6, speech_vocab=20,
    speech_text_dim=16, speech_conv_blocks=2, video_latent_channels=4, phoneme_vocab=9,
)  # fmt: skip
FRAMES, ROWS, COLUMNS, TOKENS = 4, 4, 6, 33
PER_FRAME = ROWS * COLUMNS // 4


def tiny_model(**changes: object) -> UniAVGen:
    """A model with no weight at zero, so that every path matters."""
    config = UniAVGenConfig(**{**SIZES, **changes})  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UniAVGen(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model.eval()


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def video_stream(
    batch: int = 1, *, num_reference: int = 1, num_given: int | tuple[int, ...] = 1
) -> VideoStream:
    times = torch.linspace(300, 900, batch)[:, None].repeat(1, num_reference + FRAMES)
    times[:, : num_reference + (num_given if isinstance(num_given, int) else 0)] = 0
    return VideoStream(
        latents=rand(batch, SIZES["video_latent_channels"], num_reference + FRAMES, ROWS, COLUMNS),
        timesteps=times,
        num_reference=num_reference,
        num_given=num_given,
    )


def audio_stream(
    batch: int = 1, *, num_reference: int = 0, num_given: int | tuple[int, ...] = 0
) -> AudioStream:
    times = torch.linspace(300, 900, batch)[:, None].repeat(1, num_reference + TOKENS)
    if isinstance(num_given, int):
        times[:, num_reference : num_reference + num_given] = 0
    return AudioStream(
        mels=rand(batch, num_reference + TOKENS, 80),
        timesteps=times,
        num_reference=num_reference,
        num_given=num_given,
    )


def conditions(*lengths: int, num_reference: int = 0) -> Conditions:
    """One sample for each length of speech text."""
    speech = torch.arange(max(lengths)).repeat(len(lengths), 1) * 7 % SIZES["speech_vocab"]
    for row, length in zip(speech, lengths, strict=True):
        row[length:] = -1
    places = torch.arange(num_reference + TOKENS).repeat(len(lengths), 1)
    return Conditions(
        caption=rand(len(lengths), SIZES["caption_tokens"], SIZES["caption_dim"]),
        speech=speech,
        speech_lengths=lengths,
        phonemes=places // 5 % SIZES["phoneme_vocab"],
    )


def on(batch: int = 1) -> Switches:
    return Switches(a2v=(True,) * batch, v2a=(True,) * batch)
