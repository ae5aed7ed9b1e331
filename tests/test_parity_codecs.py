"""The released codecs' own numbers, stored; UNIAVGEN_PARITY names another folder of them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from uniavgen_cli.config import load_preset
from uniavgen_cli.models.state_dict import read_shapes

pytest.importorskip("diffusers", reason="the extra `released` is not installed")
pytest.importorskip("transformers", reason="the extra `released` is not installed")

from released_folder import write_tokenizer  # noqa: E402

from uniavgen_cli.codecs import umt5  # noqa: E402
from uniavgen_cli.codecs.wan_vae import WanVideoVAE  # noqa: E402

PARITY = Path(os.environ.get("UNIAVGEN_PARITY") or Path(__file__).parent / "parity")
VAE, VAE_CASES = PARITY / "video_vae_weights.safetensors", PARITY / "video_vae_cases.safetensors"
CAPTION, CAPTION_CASES = (
    PARITY / "caption_encoder_weights.safetensors",
    PARITY / "caption_encoder_cases.safetensors",
)


def worst(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


@pytest.fixture(scope="module")
def vae() -> WanVideoVAE:
    cases = load_file(VAE_CASES)
    return WanVideoVAE.load(VAE, cases["latents_mean"].tolist(), cases["latents_std"].tolist())


@torch.inference_mode()
def test_video_vae(vae: WanVideoVAE) -> None:
    cases = load_file(VAE_CASES)
    assert worst(vae.encode(cases["video"]), cases["latent"]) < 1e-4
    assert worst(vae.decode(cases["latent"]), cases["decoded"]) < 1e-4


@torch.inference_mode()
def test_a_diffusers_folder_and_a_pth_hold_the_same_vae(vae: WanVideoVAE, tmp_path: Path) -> None:
    cases = load_file(VAE_CASES)
    vae.vae.save_pretrained(tmp_path / "vae")
    torch.save(load_file(VAE), tmp_path / "vae.pth")
    statistics = cases["latents_mean"].tolist(), cases["latents_std"].tolist()
    for path in (tmp_path / "vae", tmp_path / "vae.pth"):
        assert torch.equal(
            WanVideoVAE.load(path, *statistics).encode(cases["video"]), vae.encode(cases["video"])
        )


@pytest.mark.parametrize("num_frames", [2, 3, 4, 6, 8])
def test_other_frame_counts_are_refused_and_never_cut(vae: WanVideoVAE, num_frames: int) -> None:
    with pytest.raises(ValueError, match=f"{num_frames} frames are not 1 \\+ 4k"):
        vae.encode(torch.zeros(1, 3, num_frames, 32, 32))


def test_sides_that_do_not_divide_are_refused(vae: WanVideoVAE) -> None:
    for height, width in ((40, 32), (32, 24)):
        with pytest.raises(ValueError, match=f"{height}x{width} is no multiple of 16"):
            vae.encode(torch.zeros(1, 3, 5, height, width))


@torch.inference_mode()
def test_latents_and_frames_have_the_sizes_the_clip_has(vae: WanVideoVAE) -> None:
    for num_frames in (1, 5):
        latents = vae.encode(torch.rand(1, 3, num_frames, 32, 64) * 2 - 1)
        assert latents.shape == (1, vae.latent_channels, (num_frames - 1) // 4 + 1, 2, 4)
        frames = vae.decode(10 * latents)
        assert frames.shape == (1, 3, num_frames, 32, 64) and frames.abs().max() <= 1


def caption_dim() -> int:
    return load_file(CAPTION_CASES)["hidden"].shape[-1]


def captions(path: Path, folder: Path, tokens: int = 24) -> umt5.UMT5Captions:
    if not (folder / "tokenizer").exists():
        write_tokenizer(folder / "tokenizer")
    return umt5.UMT5Captions(path, folder / "tokenizer", tokens=tokens, dim=caption_dim())


def large_enough(folder: Path) -> Path:
    """The stored encoder, with rows added to its table where the test's tokenizer has more."""
    tensors = load_file(CAPTION)
    missing = 128 - len(tensors["token_embedding.weight"])
    if missing <= 0:
        return CAPTION
    added = torch.zeros(missing, tensors["token_embedding.weight"].shape[1])
    tensors["token_embedding.weight"] = torch.cat((tensors["token_embedding.weight"], added))
    save_file(tensors, folder / "caption.safetensors")
    return folder / "caption.safetensors"


def test_caption_encoder(tmp_path: Path) -> None:
    cases = load_file(CAPTION_CASES)
    encoder = captions(large_enough(tmp_path), tmp_path)
    with encoder.resident():
        hidden = encoder.states(cases["ids"], cases["mask"])
    assert worst(hidden, cases["hidden"]) < 1e-4
    with pytest.raises(RuntimeError, match="not in memory"):
        encoder.states(cases["ids"], cases["mask"])


def test_a_transformers_folder_holds_the_same_encoder(tmp_path: Path) -> None:
    path = large_enough(tmp_path)
    first = captions(path, tmp_path)
    with first.resident():
        assert first._model is not None
        first._model.save_pretrained(tmp_path / "text_encoder")
    torch.save(load_file(path), tmp_path / "caption.pth")
    expected = first.encode(["a man"])
    for other in (tmp_path / "text_encoder", tmp_path / "caption.pth"):
        assert torch.equal(captions(other, tmp_path).encode(["a man"]), expected)


def test_states_are_padded_with_zeros_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = captions(large_enough(tmp_path), tmp_path, tokens=6)
    states = encoder.encode(["a  man &amp; a woman with red hair, smiling", "a man", ""])
    assert states.shape == (3, 6, caption_dim())
    assert [int(row.abs().sum(-1).bool().sum()) for row in states] == [6, 3, 1]  # cut; two words; the end
    assert encoder._model is None
    monkeypatch.setattr(umt5, "load_weights", lambda *_, **__: pytest.fail("the encoder was loaded again"))
    assert torch.equal(encoder.encode(["", "a man"]), states[[2, 1]])


def test_a_text_ends_with_the_end_token_whatever_its_tokenizer_says(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer.json"
    expected = captions(large_enough(tmp_path), tmp_path, tokens=3).encode(["", "a man", "a red woman"])
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    bare = captions(large_enough(tmp_path), tmp_path, tokens=3)
    assert torch.equal(bare.encode(["", "a man", "a red woman"]), expected)
    assert [len(bare.tokenize(text)) for text in ("", "a man", "a red woman")] == [1, 3, 3]


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("  a\tman\n\n smiling ", "a man smiling"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("a cafÃ©", "a café"),
        ("一个人", "一个人"),
    ],
)
def test_captions_are_cleaned(caption: str, cleaned: str) -> None:
    assert umt5.clean(caption) == cleaned


def test_the_presets_statistics_are_the_released_ones() -> None:
    stored = json.loads((PARITY / "wan22_vae_latents.json").read_text())
    preset = load_preset("uniavgen").video_vae
    assert preset["latents_mean"] == stored["latents_mean"]
    assert preset["latents_std"] == stored["latents_std"]
    assert len(stored["latents_std"]) == preset["latent_channels"]


def test_the_full_sizes_are_read_from_the_files_shapes() -> None:
    """Built on the meta device: no memory, no weights."""
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    from uniavgen_cli.codecs import wan_vae

    sizes = {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
        "attn_scales": [], "temperal_downsample": [False, True, True], "is_residual": True, "in_channels": 12,
        "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "scale_factor_temporal": 4,
    }  # fmt: skip
    with torch.device("meta"):
        vae = AutoencoderKLWan(**sizes, latents_mean=[0.0] * 48, latents_std=[1.0] * 48)
    key = wan_vae.original_key(2)
    shapes = {key(name): tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    assert wan_vae.sizes_of(shapes) == sizes == wan_vae.sizes_of({})
    assert len(shapes) == len(vae.state_dict())
    stored = json.loads((PARITY / "video_vae.json").read_text())
    if stored["num_res_blocks"] == 2 and stored["dim_mult"] == [1, 2, 4, 4]:
        assert set(shapes) == set(read_shapes(VAE))

    numbers = {
        "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "relative_attention_num_buckets": 32,
    }  # fmt: skip
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**numbers))
    shapes = {umt5.original_key(name): tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert umt5.sizes_of(shapes) == numbers == umt5.sizes_of({})
    assert 5.6e9 < sum(torch.Size(shape).numel() for shape in shapes.values()) < 5.8e9
