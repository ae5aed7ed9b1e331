"""8-bit weights: near to the others, as many bytes as planned, and loaded without ever holding more."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from joint_inputs import audio_stream, conditions, on, tiny_model, video_stream
from safetensors.torch import save_file
from tiny_model import write_tiny_preset
from torch import nn

if find_spec("torchao") is None:
    pytest.skip("the extra `released` is not installed", allow_module_level=True)

from uniavgen_cli.config import load_preset  # noqa: E402
from uniavgen_cli.engine import costs, eight_bit, memory  # noqa: E402
from uniavgen_cli.engine.engine import Engine  # noqa: E402
from uniavgen_cli.engine.streaming import layers_of, on_device_meanwhile, streamed  # noqa: E402
from uniavgen_cli.errors import UsageError, WeightsError  # noqa: E402
from uniavgen_cli.models.state_dict import FLOAT32_PARTS, save_sharded  # noqa: E402
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig  # noqa: E402

NEAR = 0.02  # of the largest number there is: what 8 bits may change in what a tiny random model gives


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return 0 < (one - other).abs().max() < NEAR * other.abs().max()


def packed_model(tmp_path: Path, dtype: torch.dtype = torch.float32) -> tuple[UniAVGen, UniAVGen]:
    """The tiny model as it is, and from its file in 8 bits."""
    plain = tiny_model()
    path = save_sharded(plain.state_dict(), tmp_path, dtype=torch.float32)
    with torch.device("meta"):
        packed = UniAVGen(plain.config).eval()
    eight_bit.load_weights(packed, path, dtype=dtype)
    return plain, packed


def test_a_row_is_kept_to_half_a_step_and_zeros_stay() -> None:
    matrix = (
        torch.randn(40, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 40)[:, None]
    )
    matrix[7] = 0
    linear = nn.Linear(96, 40)
    held = eight_bit.EightBitLinear(linear, torch.float32)
    held.hold(matrix)
    assert held.packed.dtype == torch.int8 and held.row_scale.shape == (40, 1)
    step = matrix.abs().amax(dim=1, keepdim=True) / 127.5
    assert ((held.weight - matrix).abs() <= 0.5001 * step).all() and not held.weight[7].any()
    x = torch.randn(3, 5, 96)
    assert torch.equal(held(x), nn.functional.linear(x, held.weight, linear.bias))


def test_it_is_what_torchao_would_multiply_with() -> None:
    from torchao.quantization import dequantize_affine

    matrix = torch.randn(24, 32)
    packed, scale = eight_bit.packed_rows(matrix)
    theirs = dequantize_affine(packed, (1, 32), scale, None, torch.int8, output_dtype=torch.float32)
    assert torch.equal(packed * scale, theirs)


def test_the_joint_model_gives_nearly_the_same(tmp_path: Path) -> None:
    plain, packed = packed_model(tmp_path)
    inputs = video_stream(2), audio_stream(2), conditions(12, 10), on(2)
    with torch.inference_mode():
        before, after = plain(*inputs), packed(*inputs)
        assert near(after.video, before.video) and near(after.audio, before.audio)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = packed(*inputs).video
    assert (rounded - after.video).abs().max() < 0.1 * after.video.abs().max()


def test_what_is_packed_and_what_is_not(tmp_path: Path) -> None:
    _, packed = packed_model(tmp_path)
    linears = {name for name, part in packed.named_modules() if isinstance(part, nn.Linear)}
    inside = {name for name, part in packed.named_modules() if isinstance(part, eight_bit.EightBitLinear)}
    in_layers = sum(
        isinstance(part, eight_bit.EightBitLinear) for layer in layers_of(packed) for part in layer.modules()
    )
    assert len(inside) == in_layers > 40
    assert all(name.endswith("mask_head.head") for name in linears if name.startswith(eight_bit.BLOCKS))
    assert "head.head" in linears


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_are_those_planned(dtype: torch.dtype, tmp_path: Path) -> None:
    plain, packed = packed_model(tmp_path, dtype)
    with torch.device("meta"):
        counted = UniAVGen(plain.config)
        eight_bit.make_room(counted, dtype)
    real = sum(tensor.nbytes for tensor in packed.state_dict().values())
    assert costs.tensor_bytes(counted, dtype, eight_bit.FLOAT32_PARTS) == real
    assert real < costs.tensor_bytes(plain, dtype, FLOAT32_PARTS)


def test_nothing_more_than_one_matrix_is_held_while_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    inner = eight_bit.each_tensor

    def watched(path: Path, device: str):  # noqa: ANN202
        for name, tensor in inner(path, device):
            waiting.append(sum(x.nbytes for x in model.state_dict().values() if x.device.type == "cpu"))
            yield name, tensor

    plain = tiny_model()
    path = save_sharded(plain.state_dict(), tmp_path, dtype=torch.float32)
    with torch.device("meta"):
        model = UniAVGen(plain.config)
    monkeypatch.setattr(eight_bit, "each_tensor", watched)
    eight_bit.load_weights(model, path)
    total = sum(x.nbytes for x in model.state_dict().values())
    assert waiting == sorted(waiting) and waiting[0] == 0 and waiting[-1] < total


def test_a_file_that_does_not_fit_is_refused_as_ever(tmp_path: Path) -> None:
    plain = tiny_model()
    tensors = dict(plain.state_dict())
    tensors["other"] = tensors.pop("blocks.0.self_attn.q.weight")
    save_file(tensors, tmp_path / "joint.safetensors")
    with torch.device("meta"):
        model = UniAVGen(plain.config)
    with pytest.raises(WeightsError, match="blocks.0.self_attn.q.weight missing"):
        eight_bit.load_weights(model, tmp_path / "joint.safetensors")


def test_packed_weights_are_lent_like_others(tmp_path: Path) -> None:
    _, packed = packed_model(tmp_path)
    inputs = video_stream(), audio_stream(), conditions(12), on()
    with torch.inference_mode():
        before = packed(*inputs).video
        for place in (on_device_meanwhile, streamed):
            with place(packed, "cpu"):
                assert torch.equal(packed(*inputs).video, before)
        assert torch.equal(packed(*inputs).video, before)


def test_without_torchao_the_mode_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    mode = memory.mode_named("8-bit")
    monkeypatch.setattr(eight_bit, "installed", lambda: False)
    assert not mode.runs and memory.smaller_mode(memory.mode_named("tiled")) == memory.mode_named("streamed")
    with pytest.raises(
        UsageError, match=r"torchao, which is not installed; pip install 'uniavgen\[released\]'"
    ):
        memory.mode_named("8-bit")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UsageError, match="memory=streamed"):
        eight_bit.packed_rows(torch.ones(2, 2))


def test_an_engine_in_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_tiny_preset(tmp_path))
    model = UniAVGen(UniAVGenConfig(**load_preset(path).model))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():  # as built its heads give nothing
            torch.nn.init.normal_(parameter, std=0.1)
    save_sharded(model.state_dict(), tmp_path / "tiny")
    made: dict[str, torch.Tensor] = {}
    for mode in ("8-bit", "resident"):
        engine = Engine.from_preset(path, [f"runtime.memory={mode}"])
        inside = any(isinstance(part, eight_bit.EightBitLinear) for part in engine.model.modules())
        assert inside == (mode == "8-bit")
        decode = engine.vocoder.decode

        def noted(mels: torch.Tensor, mode: str = mode, decode: Any = decode) -> torch.Tensor:
            made[mode] = mels.float()  # of which an untrained vocoder makes any sound
            return decode(mels)

        monkeypatch.setattr(engine.vocoder, "decode", noted)
        clip = engine.generate("a woman", speech="Hello.", steps=1, seed=1)
        assert clip.record["runtime"]["memory"] == mode
    apart = (made["8-bit"] - made["resident"]).abs().max()
    assert 0 < apart < 0.05 * made["resident"].abs().max()


def test_the_released_layout_in_8_bits(tmp_path: Path) -> None:
    for name in ("diffusers", "transformers", "ftfy"):
        pytest.importorskip(name, reason="the extra `released` is not installed")
    from released_folder import write_released

    path = str(write_released(tmp_path))
    packed, whole = Engine.from_preset(path, ["runtime.memory=8-bit"]), Engine.from_preset(path)
    captions = ["a man with red hair", "a woman, smiling"]
    with packed.captions.resident() as encoder:  # type: ignore[attr-defined]
        linears = [part for part in encoder._model.modules() if isinstance(part, eight_bit.EightBitLinear)]
        assert len(linears) == 2 * 7 and not any(
            isinstance(part, nn.Linear) for part in encoder._model.modules()
        )
        with torch.device("meta"):
            counted = encoder._empty()
            eight_bit.make_room(counted, torch.float32)
        counted.set_input_embeddings(counted.shared)
        real = {tensor.data_ptr(): tensor.nbytes for tensor in encoder._model.state_dict().values()}
        assert costs.tensor_bytes(counted, torch.float32, eight_bit.FLOAT32_PARTS) == sum(real.values())
        states = encoder.encode(captions)
    assert near(states, whole.captions.encode(captions))
    config = UniAVGenConfig(**load_preset(path).model)
    with torch.device("meta"):
        counted = UniAVGen(config)
        eight_bit.make_room(counted, torch.float32)
    held = sum(tensor.nbytes for tensor in packed.model.state_dict().values())
    assert costs.tensor_bytes(counted, torch.float32, eight_bit.FLOAT32_PARTS) == held


def test_torchao_has_nothing_to_say(tmp_path: Path) -> None:
    """Installed, it is imported by diffusers, and both write notes to developers."""
    code = (
        "from uniavgen_cli.codecs.released import import_libraries; import_libraries('any');"
        "from diffusers import AutoencoderKLWan; from transformers import UMT5EncoderModel;"
        "from uniavgen_cli.engine.eight_bit import packed_rows; import torch; packed_rows(torch.ones(2, 2))"
    )
    pytest.importorskip("diffusers", reason="the extra `released` is not installed")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


@pytest.mark.gpu
def test_packed_weights_on_a_gpu(tmp_path: Path) -> None:
    plain, packed = packed_model(tmp_path, torch.bfloat16)
    inputs = video_stream(), audio_stream(), conditions(12), on()
    there = [
        type(x)(**{k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in vars(x).items()})
        for x in inputs
    ]
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16), on_device_meanwhile(packed, "cuda"):
        out = packed(*there).video.cpu()
    expected = plain(*inputs).video
    assert (out - expected).abs().max() < 0.1 * expected.abs().max()
