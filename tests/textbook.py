"""The joint model as its formulas read, at any cost: the oracle of the tests and of the benchmark.

It takes an `UniAVGen` for its weights only. Every token has a timestep embedding of its own, every audio
token projects the whole picture it looks at, every window its own audio.
"""

from math import ceil, floor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from uniavgen_cli.models.uniavgen import AudioStream, Conditions, JointOutput, Switches, UniAVGen, VideoStream


def forward(
    model: UniAVGen, video: VideoStream, audio: AudioStream, conditions: Conditions, switches: Switches
) -> JointOutput:
    """What `model(...)` answers; batch 1."""
    config = model.config
    frames, height, width = (
        size // patch for size, patch in zip(video.latents.shape[2:], config.patch, strict=True)
    )
    per_frame, clip_frames = height * width, frames - video.num_reference
    x = model.patch_embedding(video.latents)
    y = model.audio_embedding(audio.mels)
    if model.phonemes is not None:
        assert conditions.phonemes is not None
        y = y + model.phonemes(conditions.phonemes)
    x_embed = _time(video.timesteps.repeat_interleave(per_frame, 1), config.freq_dim, model.time_embedding)
    y_embed = _time(audio.timesteps, config.freq_dim, model.time_embedding_audio)
    x_six = model.time_projection(x_embed).unflatten(-1, (6, -1))
    y_six = model.time_projection_audio(y_embed).unflatten(-1, (6, -1))
    missing = config.caption_tokens - conditions.caption.shape[1]
    caption = model.text_embedding_video(functional.pad(conditions.caption, (0, 0, 0, missing)))
    speech = conditions.speech[:, : conditions.speech_lengths[0]]
    speech = model.text_proj(model.text_embedding(speech, (speech.shape[1],)))

    x_dim, y_dim = config.video_dim // config.video_heads, config.audio_dim // config.audio_heads
    first = 1 - video.num_reference
    x_turn = _video_turn(x_dim, range(first, first + frames), height, width)
    y_turn, text_turn = (_turn(torch.arange(t.shape[1]), y_dim) for t in (y, speech))
    x_start, y_start = video.num_reference * per_frame, audio.num_reference
    skips = bool(switches.skipped and switches.skipped[0])

    masks = []
    for i in range(config.num_blocks):
        if skips and i == switches.skip_block:
            continue
        x = _block(model.blocks[i], x, x_six, x_turn, caption, None, None)
        y = _block(model.audio_blocks[i], y, y_six, y_turn, speech, y_turn, text_turn)
        if i not in config.interaction_blocks:
            continue
        layer = config.interaction_blocks.index(i)
        a2v, v2a = model.a2v_blocks[layer], model.v2a_blocks[layer]
        picture = x[:, x_start:].unflatten(1, (clip_frames, per_frame))
        sound = y[:, y_start:]
        modulation = a2v.mask_head.modulation + x_embed[:, x_start:].unsqueeze(2)
        shift, scale = modulation.unbind(2)
        logits = a2v.mask_head.head(_layer_norm(x[:, x_start:]) * (1 + scale) + shift)
        mask = logits.sigmoid().unflatten(1, (clip_frames, per_frame))
        masks.append(logits.squeeze(-1).unflatten(1, (clip_frames, per_frame)))
        to_video = _audio_to_video(a2v, picture, sound, height, width) * mask
        to_audio = _video_to_audio(v2a, sound, picture * mask, height, width)
        if switches.a2v[0]:
            given = x_start + video.num_given * per_frame
            x = torch.cat(
                (x[:, :given], x[:, given:] + a2v.o(to_video).flatten(1, 2)[:, given - x_start :]), 1
            )
        if switches.v2a[0]:
            given = y_start + audio.num_given
            y = torch.cat((y[:, :given], y[:, given:] + v2a.o(to_audio)[:, given - y_start :]), 1)

    patches = _head(model.head, x, x_embed).unflatten(1, (frames, height, width))
    patches = patches.unflatten(-1, (*config.patch, config.video_latent_channels))
    latents = torch.einsum("bfhwpqrc->bcfphqwr", patches).reshape(video.latents.shape)
    return JointOutput(latents, _head(model.head_audio, y, y_embed), torch.stack(masks, 1))


def _time(timesteps: Tensor, freq_dim: int, embed: nn.Module) -> Tensor:
    half = freq_dim // 2
    angles = timesteps.double()[..., None] * 10_000.0 ** (-torch.arange(half).double() / half)
    return embed(torch.cat((angles.cos(), angles.sin()), -1).float())


def _turn(positions: Tensor, dim: int) -> Tensor:
    angles = positions.double()[:, None] * 10_000.0 ** (-torch.arange(0, dim, 2).double() / dim)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def _video_turn(dim: int, frames: range, height: int, width: int) -> Tensor:
    side = dim // 2 // 3
    shape = (len(frames), height, width, -1)
    parts = (
        _turn(torch.tensor(frames), 2 * (dim // 2 - 2 * side))[:, None, None].expand(shape),
        _turn(torch.arange(height), 2 * side)[None, :, None].expand(shape),
        _turn(torch.arange(width), 2 * side)[None, None].expand(shape),
    )
    return torch.cat(parts, -1).flatten(0, 2)


def _layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def _head(head: nn.Module, x: Tensor, embed: Tensor) -> Tensor:
    shift, scale = (head.modulation + embed.unsqueeze(2)).unbind(2)
    return head.head(_layer_norm(x) * (1 + scale) + shift)


def _block(
    block: Any,
    x: Tensor,
    six: Tensor,
    turn: Tensor,
    text: Tensor,
    q_turn: Tensor | None,
    k_turn: Tensor | None,
) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation + six).unbind(2)
    y = _layer_norm(x) * (1 + scale1) + shift1
    attn = block.self_attn
    x = x + gate1 * attn.o(_attend(attn, attn.q(y), attn.k(y), attn.v(y), turn, turn))
    y, attn = block.norm3(x), block.cross_attn
    x = x + attn.o(_attend(attn, attn.q(y), attn.k(text), attn.v(text), q_turn, k_turn))
    return x + gate2 * block.ffn(_layer_norm(x) * (1 + scale2) + shift2)


def _attend(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, q_turn: Tensor | None, k_turn: Tensor | None
) -> Tensor:
    q, k = module.norm_q(q), module.norm_k(k)
    q, k, v = (x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    if q_turn is not None:
        q = _rotated(q, q_turn)
    if k_turn is not None:
        k = _rotated(k, k_turn)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _rotated(x: Tensor, turn: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)


def _audio_to_video(module: nn.Module, picture: Tensor, sound: Tensor, height: int, width: int) -> Tensor:
    """picture (1, f, n, d), sound (1, a, d_a) -> (1, f, n, d), before the mask and `o`."""
    windows = torch.tensor(windows_of(picture.shape[1], sound.shape[1]))
    heard = sound[:, windows].flatten(0, 1)  # f w d_a
    dim = module.q.out_features // module.num_heads
    in_frame = dim // 2 - 2 * (dim // 2 // 3)
    k_turn = _turn(torch.arange(windows.shape[1]), dim)
    k_turn = torch.cat((k_turn[:, :in_frame], torch.ones_like(k_turn[:, in_frame:])), 1)
    seen = picture.flatten(0, 1)
    q_turn = _video_turn(dim, range(1), height, width)
    return _attend(module, module.q(seen), module.k(heard), module.v(heard), q_turn, k_turn).unsqueeze(0)


def windows_of(num_frames: int, num_tokens: int) -> list[list[int]]:
    rate = num_tokens / (4 * (num_frames - 1) + 1)
    left, right = floor(2 * rate), ceil(2 * rate)
    spans = [[-left, 1 + right]]
    for i in range(1, num_frames):
        start = 4 * (i - 1) + 1
        spans.append([floor(start * rate) - left, ceil((start + 4) * rate) + right])
    longest = max(end - start for start, end in (spans[1:] or spans))
    for span in spans:
        extra = longest - (span[1] - span[0])
        if span[0] < 0:
            span[0] -= extra
        elif span[1] >= num_tokens:
            span[1] += extra
        else:
            span[0] -= extra // 2
            span[1] += extra - extra // 2
    return [[min(max(j, 0), num_tokens - 1) for j in range(*span)] for span in spans]


def _video_to_audio(module: nn.Module, sound: Tensor, picture: Tensor, height: int, width: int) -> Tensor:
    """sound (1, a, d_a), masked picture (1, f, n, d) -> (1, a, d_a), before `o`."""
    num_tokens, num_frames = sound.shape[1], picture.shape[1]
    pixel_frames = 4 * (num_frames - 1) + 1
    on_pixel_frames = torch.cat((picture[0, :1], picture[0, 1:].repeat_interleave(4, 0)))
    place = torch.arange(num_tokens).double() / (num_tokens / pixel_frames)
    lower = place.floor().long().clamp(0, pixel_frames - 1)
    upper = (lower + 1).clamp(0, pixel_frames - 1)
    upper_weight, lower_weight = (1 - (upper - place)).float(), (1 - (place - lower)).float()
    seen = upper_weight[:, None, None] * on_pixel_frames[upper]
    seen = seen + lower_weight[:, None, None] * on_pixel_frames[lower]  # a n d
    k_turn = _video_turn(module.q.out_features // module.num_heads, range(1), height, width)
    q = module.q(sound).transpose(0, 1)  # a 1 d_a
    return _attend(module, q, module.k(seen), module.v(seen), None, k_turn).transpose(0, 1)
