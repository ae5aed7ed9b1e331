"""What a preset's weights and stages cost in bytes, counted without weights, values or a GPU.

Weights are counted on the meta device; what a stage allocates beside them is counted by running its code
(`counting.py`). Source of the released codecs' sizes: Wan2.2 (arXiv 2503.20314), umT5-xxl (arXiv 2304.09151).
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from uniavgen_cli.codecs.released import import_libraries
from uniavgen_cli.config import Preset
from uniavgen_cli.diffusion.guidance import Guidance, Pass, batch_passes, guided
from uniavgen_cli.diffusion.sampler import Given, State
from uniavgen_cli.engine import eight_bit
from uniavgen_cli.engine.counting import Counted, count, with_shapes_only, without_values
from uniavgen_cli.engine.memory import (
    MEDIA_BYTES,
    MODES,
    Costs,
    Mode,
    choose_mode,
    gib,
    gpu_peak,
    window,
)
from uniavgen_cli.engine.streaming import layers_of, pinned_bytes
from uniavgen_cli.engine.windows import kept_frames
from uniavgen_cli.errors import OutOfMemoryError
from uniavgen_cli.models.state_dict import FLOAT32_PARTS
from uniavgen_cli.models.uniavgen import Conditions, UniAVGen, UniAVGenConfig
from uniavgen_cli.runtime import Runtime
from uniavgen_cli.shapes import ClipSpec, padded_frames

SPEECH_TOKENS = 100  # of the speech text: five seconds of quick English
# Latent frames with which a VAE that goes frame by frame is counted; from the first on each adds the same.
COUNTED_FRAMES = (3, 4)
TILE = 256  # pixels of a side that diffusers encodes or decodes at once, 192 of them new
TILE_OVERLAP = (256 / 192) ** 2

WAN_VAE: dict[str, Any] = dict(
    base_dim=160,
    decoder_base_dim=256,
    dim_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    attn_scales=[],
    temperal_downsample=[False, True, True],
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_temporal=4,
    scale_factor_spatial=16,
)
UMT5_XXL: dict[str, Any] = dict(
    vocab_size=256_384, d_model=4096, d_kv=64, d_ff=10_240, num_layers=24, num_heads=64
)


@dataclass(frozen=True, kw_only=True)
class Codecs:
    """The parts beside the joint model, without values, and how each is called."""

    encoder: nn.Module
    vae: nn.Module
    vocoder: nn.Module
    read: Callable[[], Any]  # a caption
    encoder_8bit: nn.Module
    read_8bit: Callable[[], Any]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    vocode: Callable[[Tensor], Tensor] | None  # None: beside the VAE of its size it never decides
    frame_by_frame: bool  # the VAE, so that few frames tell what many need


def cost(
    preset: Preset, spec: ClipSpec, device_type: str, dtype: torch.dtype, task: str = "generate"
) -> Costs:
    """Count what the window `spec` costs; `dtype` is that of the matrix products.

    The task says how many frames are given and encoded: for all tasks together take `dub`, which gives all.

    On a CPU the weights are float32 all the same, as the engine loads them. Raises UsageError when the
    packages that compute the preset's codecs are missing.
    """
    weights_dtype = dtype if device_type != "cpu" else torch.float32
    config = UniAVGenConfig(**preset.model)
    with torch.device("meta"):
        joint, joint_8bit = UniAVGen(config), UniAVGen(config)
        eight_bit.make_room(joint_8bit, weights_dtype)
    layers = [tensor_bytes(layer, weights_dtype, FLOAT32_PARTS) for layer in layers_of(joint)]
    total = tensor_bytes(joint, weights_dtype, FLOAT32_PARTS)
    with without_values():
        if preset.layout == "released":
            codecs = _released(preset, weights_dtype)
        else:
            codecs = _nano(preset)
        sampling = _sampling(config, preset, spec, device_type, dtype, weights_dtype)
        sampling_8bit = sampling  # on a CPU nobody chooses it, and counting takes a while
        if device_type != "cpu":
            sampling_8bit = _sampling(config, preset, spec, device_type, dtype, weights_dtype, bits=8)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            context = padded_frames(kept_frames(spec.num_frames))
            frames = {"dub": spec.num_frames, "continue": context}.get(task, 1)
            given = replace(spec, num_frames=frames)
            encoding = _through_vae(codecs, given, lambda s: _frames(s, codecs))
            decoding = _through_vae(codecs, spec, lambda s: _pixels(s, codecs, preset))
            # A tile's share of both, and the pictures: given ones twice while they are made numbers, decoded
            # ones as overlapping tiles, as rows of them and put together.
            tile = min(1.0, TILE * TILE / (spec.height * spec.width)) if codecs.frame_by_frame else 1.0
            picture = 4 * 3 * spec.height * spec.width if tile < 1 else 0
            return Costs(
                joint=total,
                joint_streamed=total - sum(layers) + 2 * max(layers),
                joint_pinned=total - sum(layers) + sum(map(pinned_bytes, layers)),
                joint_8bit=tensor_bytes(joint_8bit, weights_dtype, eight_bit.FLOAT32_PARTS),
                encoder=tensor_bytes(codecs.encoder),
                encoder_8bit=tensor_bytes(codecs.encoder_8bit),
                vae=tensor_bytes(codecs.vae),
                vocoder=tensor_bytes(codecs.vocoder),
                media=MEDIA_BYTES if device_type == "cpu" and frames > 1 else 0,
                mapped=tensor_bytes(joint, torch.bfloat16, FLOAT32_PARTS) if device_type == "cpu" else 0,
                captions=count(codecs.read).peak_bytes,
                captions_8bit=count(codecs.read_8bit).peak_bytes,
                encoding=encoding,
                encoding_tiled=round(tile * encoding + 2 * frames * picture),
                sampling=sampling.peak_bytes,
                sampling_8bit=sampling_8bit.peak_bytes,
                decoding=decoding,
                decoding_tiled=round(tile * decoding + (TILE_OVERLAP + 2) * spec.num_frames * picture),
            )


def fitting_mode(preset: Preset, runtime: Runtime) -> tuple[Mode, str]:
    """The first mode that holds every task in what is free on the GPU, and why; OutOfMemoryError for none."""
    device_type = torch.device(runtime.device.value).type
    counted = cost(preset, window(preset, None, None), device_type, runtime.torch_dtype, "dub")
    mode, free = choose_mode(counted, runtime.memory_bytes), gib(runtime.memory_bytes)
    if mode is None:
        raise OutOfMemoryError(
            f"the preset {preset.name} needs {gib(gpu_peak(counted, MODES[-1]))} and {free} are free",
            "take a smaller one: --set clip.short_side=480",
        )
    return mode, f"needs {gib(gpu_peak(counted, mode))} of {free} free"


def tensor_bytes(
    module: nn.Module, dtype: torch.dtype | None = None, float32_parts: tuple[str, ...] = ()
) -> int:
    """Bytes of a module's weights: as they are, or floating ones as `dtype` but for the `float32_parts`."""
    total = 0
    once = {id(tensor): (name, tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
    for name, tensor in once.values():  # shared ones are held once
        held = tensor.dtype
        if dtype is not None and tensor.is_floating_point():
            held = torch.float32 if any(part in name for part in float32_parts) else dtype
        total += tensor.numel() * held.itemsize
    return total


def joint_call(
    config: UniAVGenConfig,
    preset: Preset,
    spec: ClipSpec,
    weights_dtype: torch.dtype,
    *,
    batched: bool,
    bits: int = 16,
) -> Callable[[], State]:
    """One sampling step with guidance of a picture and a text, inside `without_values`."""
    with torch.device("meta"):
        model = UniAVGen(config)
        if bits == 8:
            eight_bit.make_room(model, weights_dtype)
    with_shapes_only(model, lambda name, tensor: _held(name, tensor, weights_dtype))
    sampling = preset.sampling
    times = (1000.0, 500.0, 0.0)
    channels, grid = config.video_latent_channels, (spec.latent_height, spec.latent_width)
    picture = torch.empty(1, channels, 1, *grid)
    given = Given(reference_frame=picture, video=picture)
    state = State(
        torch.empty(1, channels, spec.latent_frames, *grid),
        torch.empty(1, spec.audio_tokens, config.mel_bins),
    )

    def conditions(length: int) -> Conditions:
        return Conditions(
            caption=torch.empty(1, config.caption_tokens, config.caption_dim),
            speech=torch.empty(1, length, dtype=torch.int64),
            speech_lengths=(length,),
            phonemes=torch.empty(1, spec.audio_tokens, dtype=torch.int64) if config.phoneme_vocab else None,
        )

    denoise = guided(
        model,
        Guidance(
            video_scale=sampling.video_guidance,
            audio_scale=sampling.audio_guidance,
            skip_block=sampling.skip_block,
        ),
        times,
        given,
        Pass(conditions=conditions(SPEECH_TOKENS)),
        Pass(conditions=conditions(10)),
        batched=batched,
    )
    return lambda: denoise(state, times[0])


def _held(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return _cast(tensor, torch.float32 if any(part in name for part in eight_bit.FLOAT32_PARTS) else dtype)


def _sampling(
    config: UniAVGenConfig,
    preset: Preset,
    spec: ClipSpec,
    device_type: str,
    dtype: torch.dtype,
    weights_dtype: torch.dtype,
    *,
    bits: int = 16,
) -> Counted:
    counted = config
    if weights_dtype == dtype:  # else the casts that autocast keeps grow with every block
        # Blocks are alike and leave nothing behind but their masks' logits.
        blocks = min(2, config.num_blocks)
        interactions = tuple(range(min(blocks, len(config.interaction_blocks))))
        counted = replace(config, num_blocks=blocks, interaction_blocks=interactions)
    batched = batch_passes(device_type, spec.latent_frames * spec.tokens_per_frame)
    autocast = torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext()
    with autocast:
        one = count(joint_call(counted, preset, spec, weights_dtype, batched=batched, bits=bits))
    more = len(config.interaction_blocks) - len(counted.interaction_blocks)
    masks = 4 * more * spec.latent_frames * spec.tokens_per_frame * (2 if batched else 1)
    # what the loop holds beside a step: the state, what is given, the step's velocity
    channels = config.video_latent_channels
    state = 4 * (
        channels * spec.latent_frames * spec.latent_height * spec.latent_width
        + spec.audio_tokens * config.mel_bins
    )
    return replace(one, peak_bytes=one.peak_bytes + masks + 3 * state)


def _through_vae(codecs: Codecs, spec: ClipSpec, peak: Callable[[ClipSpec], int]) -> int:
    """The peak for `spec`; of a VAE that goes frame by frame as a line through two short clips."""
    short, longer = COUNTED_FRAMES
    if not codecs.frame_by_frame or spec.latent_frames <= longer:
        return peak(spec)
    first, second = (peak(replace(spec, num_frames=4 * (n - 1) + 1)) for n in COUNTED_FRAMES)
    return second + (second - first) * (spec.latent_frames - longer)


def _frames(spec: ClipSpec, codecs: Codecs) -> int:
    """Every frame of the clip given, as `dub` does."""

    def call() -> Tensor:
        pixels = torch.empty(spec.num_frames, spec.height, spec.width, 3, dtype=torch.uint8)
        frames = pixels.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        return codecs.encode(frames).float()

    return count(call).peak_bytes


def _pixels(spec: ClipSpec, codecs: Codecs, preset: Preset) -> int:
    channels = preset.model["video_latent_channels"]
    latents = torch.empty(1, channels, spec.latent_frames, spec.latent_height, spec.latent_width)
    mels = torch.empty(1, spec.audio_tokens, preset.model.get("mel_bins", 80))

    def call() -> tuple[Tensor, Tensor]:
        video = codecs.decode(latents)[0]
        pixels = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        frames = pixels.permute(1, 2, 3, 0).contiguous()
        del video
        return frames, codecs.vocode(mels) if codecs.vocode else mels

    return count(call).peak_bytes


def _on_meta(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        module = build()
    return with_shapes_only(module, lambda name, x: x.dtype if "row_scale" in name else _cast(x, dtype))


def _cast(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def _nano(preset: Preset) -> Codecs:
    from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
    from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
    from uniavgen_cli.codecs.vocoder import Vocoder, VocoderConfig

    encoder: Any = _on_meta(lambda: CaptionEncoder(CaptionConfig(**preset.caption), ()), torch.float32)
    vae: Any = _on_meta(lambda: VideoVAE(VideoVAEConfig(**preset.video_vae)), torch.float32)
    vocoder: Any = with_shapes_only(Vocoder(VocoderConfig(**preset.vocoder)), lambda _, x: x.dtype)
    tokens = torch.empty(1, preset.caption["tokens"], dtype=torch.int64)
    return Codecs(
        encoder=encoder,
        vae=vae,
        vocoder=vocoder,
        read=lambda: encoder(tokens),
        encoder_8bit=encoder,  # of nano's it is the joint model alone
        read_8bit=lambda: encoder(tokens),
        encode=vae.encode,
        decode=vae.decode,
        vocode=lambda mels: vocoder(mels).pulse,
        frame_by_frame=False,
    )


def _released(preset: Preset, dtype: torch.dtype) -> Codecs:
    import_libraries(preset.name)
    from diffusers import AutoencoderKLWan
    from transformers import Qwen2_5OmniToken2WavBigVGANModel, UMT5Config, UMT5EncoderModel
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig

    channels = preset.model["video_latent_channels"]
    wan: Any = AutoencoderKLWan  # its decorators hide that it is a module
    vae: Any = _on_meta(lambda: wan(**WAN_VAE, z_dim=channels), torch.float32)

    def umt5(bits: int, **sizes: int) -> Any:
        def build() -> nn.Module:
            encoder = UMT5EncoderModel(UMT5Config(**{**UMT5_XXL, **sizes}))
            if bits == 8:
                eight_bit.make_room(encoder, dtype)
            return encoder

        encoder: Any = _on_meta(build, dtype)
        encoder.set_input_embeddings(encoder.shared)  # one tensor, as it is loaded
        return encoder

    vocoder: Any = _on_meta(
        lambda: Qwen2_5OmniToken2WavBigVGANModel(Qwen2_5OmniBigVGANConfig()), torch.float32
    )
    ids = torch.empty(1, preset.caption["tokens"], dtype=torch.int64)

    def plain(call: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*arguments: Any) -> Any:
            with torch.autocast("cpu", enabled=False):
                return call(*arguments)

        return inside

    def reader(bits: int) -> Callable[..., Any]:
        few = umt5(bits, num_layers=2)
        return plain(
            lambda: few(input_ids=ids, attention_mask=torch.empty_like(ids)).last_hidden_state.float()
        )

    return Codecs(
        encoder=umt5(16),
        vae=vae,
        vocoder=vocoder,
        read=reader(16),
        encoder_8bit=umt5(8),
        read_8bit=reader(8),
        encode=plain(lambda frames: vae.encode(frames).latent_dist.mode()),
        decode=plain(lambda latents: vae.decode(latents).sample.clamp(-1, 1)),
        vocode=None,
        frame_by_frame=True,
    )
