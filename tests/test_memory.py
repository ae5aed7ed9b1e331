"""What a preset is said to need, against what is counted by hand and measured; the modes that need less."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from joint_inputs import audio_stream, conditions, on, tiny_model, video_stream
from tiny_model import write_tiny_preset

from uniavgen_cli.cli import main
from uniavgen_cli.commands.plan import parse_memory
from uniavgen_cli.config import load_preset, preset_names
from uniavgen_cli.engine import costs, eight_bit, memory
from uniavgen_cli.engine.counting import count, with_shapes_only, without_values
from uniavgen_cli.engine.engine import Engine, _fitting
from uniavgen_cli.engine.streaming import (
    Stream,
    _in_one_piece,
    _Piece,
    layers_of,
    on_device_meanwhile,
    pinned_bytes,
    streamed,
)
from uniavgen_cli.errors import OutOfMemoryError, UsageError, known
from uniavgen_cli.models.state_dict import FLOAT32_PARTS
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
from uniavgen_cli.runtime import Choice, Runtime
from uniavgen_cli.shapes import ClipSpec

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
# The released checkpoint's costs, as `uniavgen plan` counts them, rounded: for the ladder's arithmetic.
COSTS = memory.Costs(
    joint=13 * GIB,
    joint_streamed=1 * GIB,
    joint_pinned=15 * GIB,
    joint_8bit=7 * GIB,
    encoder=11 * GIB,
    encoder_8bit=6 * GIB,
    vae=3 * GIB,
    vocoder=0,
    media=0,
    mapped=0,
    captions=0,
    captions_8bit=0,
    encoding=8 * GIB,
    encoding_tiled=2 * GIB,
    sampling=2 * GIB,
    sampling_8bit=2 * GIB,
    decoding=20 * GIB,
    decoding_tiled=5 * GIB,
)


@pytest.fixture(autouse=True)
def with_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder with all of its modes; test_eight_bit.py has it without."""
    monkeypatch.setattr(eight_bit, "installed", lambda: True)


def test_what_is_alive_is_counted_as_it_comes_and_goes() -> None:
    def call() -> torch.Tensor:
        a = torch.empty(1000)  # 4000 bytes
        b = a.view(10, 100)  # none of its own
        c = b + 1  # 8000
        del a, b
        d = c * 2  # 8000
        return d[:1]

    with without_values():
        assert count(call).peak_bytes == 8000
        assert count(lambda: torch.empty(100) @ torch.empty(100, 7)).flops == 2 * 100 * 7


def test_attention_is_counted_without_its_scores() -> None:
    with without_values():
        q = torch.empty(1, 2, 4096, 64, dtype=torch.bfloat16)
        counted = count(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert counted.flops == 4 * 2 * 4096**2 * 64
    assert q.nbytes <= counted.peak_bytes < 1.2 * q.nbytes


def test_counting_leaves_no_trace_in_the_model_that_runs() -> None:
    """Tables are kept between calls; those made without values must not be."""
    model = tiny_model()
    inputs = video_stream(), audio_stream(), conditions(12), on()
    before = model(*inputs).video
    with torch.device("meta"):
        hollow = UniAVGen(model.config)
    with without_values():
        hollow = with_shapes_only(hollow, lambda name, tensor: tensor.dtype)
        like = [type(x)(**{k: _hollow(v) for k, v in vars(x).items()}) for x in inputs]
        assert count(lambda: hollow(*like)).flops > 0
    assert torch.equal(model(*inputs).video, before)


def _hollow(value: object) -> object:
    return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else value


def test_streamed_layers_give_the_same_and_only_two_are_there() -> None:
    model = tiny_model()
    inputs = video_stream(2), audio_stream(2), conditions(12, 10), on(2)
    with torch.inference_mode():
        before = model(*inputs)
        host = places(model)
        with streamed(model, "cpu") as stream:
            assert _elsewhere(model, host) == _outside(model)  # lent, but for the layers
            for _ in range(2):
                after = model(*inputs)
            assert stream.most_here == 2 < len(layers_of(model))
        assert _elsewhere(model, host).isdisjoint(_outside(model))
        host = places(model)
        for layer in layers_of(model):  # now in one piece each
            assert len({tensor.untyped_storage().data_ptr() for tensor in layer.state_dict().values()}) == 1
        with streamed(model, "cpu"):
            model(*inputs)
        assert places(model) == host  # which the next window finds
        again = model(*inputs)
    for one in (after, again):
        assert torch.equal(one.video, before.video) and torch.equal(one.audio, before.audio)


def test_a_piece_is_in_host_memory_wherever_tensors_are_made() -> None:
    tensors = [torch.arange(5.0), torch.tensor(2, dtype=torch.int8), torch.ones(3, 2, dtype=torch.bfloat16)]
    with torch.device("meta"):  # as the benchmark makes its inputs on the GPU
        piece = _in_one_piece(tensors, pinned=False)
        again = _in_one_piece(tensors, pinned=False)
    assert piece.device.type == again.device.type == "cpu" and again.data_ptr() == piece.data_ptr()
    assert tensors[0].tolist() == [0, 1, 2, 3, 4] and tensors[1] == 2 and tensors[2].tolist() == [[1, 1]] * 3
    assert all(tensor.data_ptr() % 2 == 0 and not tensor.is_inference() for tensor in tensors)


def test_a_layer_is_let_go_once_it_has_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of a GPU runs later: before more is brought or taken away, that is waited for."""
    told: list[str] = []

    def wait(stream: Stream) -> None:
        told.append(f"wait with {len(stream._copied)}")
        wait_really(stream)

    def take_back(piece: _Piece) -> None:
        told.append("take back")
        take_back_really(piece)

    wait_really, take_back_really = Stream._wait, _Piece.take_back
    monkeypatch.setattr(Stream, "_wait", wait)
    monkeypatch.setattr(_Piece, "take_back", take_back)
    model = tiny_model()
    with torch.inference_mode(), streamed(model, "cpu"):
        model(video_stream(), audio_stream(), conditions(12), on())
    # layer 0 before layer 2 comes, layer 1 before the next pass's first, and the last two
    assert told == ["wait with 2", "take back"] * 2 + ["wait with 2", "take back", "take back"]


def test_a_device_that_is_full_leaves_the_weights_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halfway through lending a model: the same engine may go on with a smaller clip."""
    model = tiny_model()
    host, left = places(model), iter([None] * 5)
    really = torch.Tensor.to

    def full(tensor: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        if options.get("copy") and next(left, "none") == "none":
            raise torch.OutOfMemoryError("out of memory")
        return really(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", full)
    for place in (on_device_meanwhile, streamed):
        with pytest.raises(torch.OutOfMemoryError), place(model, "cpu"):
            model(video_stream(), audio_stream(), conditions(12), on())
        assert _elsewhere(model, host).isdisjoint(_outside(model))


def places(model: torch.nn.Module) -> list[int]:
    return [parameter.data_ptr() for parameter in model.parameters()]


def _elsewhere(model: UniAVGen, host: list[int]) -> set[str]:
    named = zip(model.named_parameters(), host, strict=True)
    return {name for (name, parameter), place in named if parameter.data_ptr() != place}


def _outside(model: UniAVGen) -> set[str]:
    inside = {id(tensor) for layer in layers_of(model) for tensor in layer.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) not in inside}


def test_a_left_out_block_does_not_stop_the_stream() -> None:
    model = tiny_model()
    switches = replace(on(), skip_block=1, skipped=(True,))
    inputs = video_stream(), audio_stream(), conditions(12), switches
    with torch.inference_mode():
        before = model(*inputs)
        with streamed(model, "cpu"):
            assert torch.equal(model(*inputs).video, before.video)


def test_an_error_within_brings_the_weights_back() -> None:
    model = tiny_model()
    host = [parameter.data_ptr() for parameter in model.parameters()]
    for place in (streamed, on_device_meanwhile):
        with pytest.raises(RuntimeError, match="out of memory"), place(model, "cpu"):
            raise RuntimeError("out of memory")
        assert [parameter.data_ptr() for parameter in model.parameters()] == host
        assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("mode", memory.MODES, ids=lambda mode: mode.name)
def test_every_mode_samples_the_same(mode: memory.Mode) -> None:
    model = tiny_model()
    inputs = video_stream(), audio_stream(), conditions(12), on()
    with torch.inference_mode():
        before = model(*inputs)
        with memory.apply_mode(model, mode, "cpu"):
            assert torch.equal(model(*inputs).audio, before.audio)


def test_the_ladder_goes_down_and_advice_names_the_next_step() -> None:
    peaks = [memory.gpu_peak(COSTS, mode) for mode in memory.MODES]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    chosen = [memory.choose_mode(COSTS, size * GIB) for size in (80, 48, 24, 16, 12, 4)]
    assert [mode and mode.name for mode in chosen] == [*(mode.name for mode in memory.MODES), None]
    for mode, below in zip(memory.MODES[:-1], memory.MODES[1:], strict=True):
        assert memory.smaller_mode(mode) == below and below.name in memory.advice(mode)
    assert "--size" in memory.advice(memory.MODES[-1]) and "memory=" not in memory.advice(memory.MODES[-1])
    with pytest.raises(UsageError, match="resident, encoder-first"):
        memory.mode_named("small")


def runtime_with(device: str, free: int) -> Runtime:
    return Runtime(Choice(device, ""), Choice("bfloat16", ""), Choice("sdpa", ""), free)


def test_the_mode_is_the_presets_or_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "cost", lambda *_: COSTS)  # counted in the tests below
    released = load_preset("uniavgen")
    for free, name in (
        (80, "resident"),
        (40, "encoder-first"),
        (23, "tiled"),
        (16, "8-bit"),
        (11, "streamed"),
    ):
        mode, why = memory.mode_for(released, runtime_with("cuda", free * GIB))
        assert mode.name == name and f"{free}.00 GiB free" in why
    with pytest.raises(OutOfMemoryError, match="4.00 GiB are free"):
        memory.mode_for(released, runtime_with("cuda", 4 * GIB))
    mode, why = memory.mode_for(load_preset("uniavgen-12gb"), runtime_with("cuda", 80 * GIB))
    assert (mode.name, why) == ("streamed", "asked for")
    assert memory.mode_for(load_preset("nano"), runtime_with("cuda", 1))[0].name == "resident"
    assert memory.mode_for(released, runtime_with("cpu", 1))[0].name == "resident"


def test_where_the_parts_are_loaded_to() -> None:
    homes = {mode.name: memory.joint_home(mode, "cuda") for mode in memory.MODES}
    assert homes == {"resident": "cuda"} | dict.fromkeys(
        ("encoder-first", "tiled", "8-bit", "streamed"), "cpu"
    )
    assert [memory.encoder_home(mode, "cuda") for mode in memory.MODES] == ["cuda"] * 4 + ["cpu"]


def test_a_vae_in_tiles_draws_nearly_the_same() -> None:
    diffusers = pytest.importorskip("diffusers")
    sizes = {**costs.WAN_VAE, "base_dim": 8, "decoder_base_dim": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKLWan(**sizes, z_dim=48).eval()
        latents = torch.randn(1, 48, 2, 10, 20)
    holder = SimpleNamespace(vae=vae)
    with torch.inference_mode():
        whole = vae.decode(latents).sample
        memory.tile(holder, memory.mode_named("resident"))
        assert torch.equal(vae.decode(latents).sample, whole)
        memory.tile(holder, memory.mode_named("tiled"))
        tiled = vae.decode(latents).sample
    assert tiled.shape == whole.shape == (1, 3, 5, 160, 320) and not torch.equal(tiled, whole)
    apart = (tiled - whole).abs().mean() / whole.std()
    assert apart < 0.2, apart
    memory.tile(object(), memory.mode_named("tiled"))  # nano's VAE has no tiles


def test_a_stage_is_the_sum_of_what_is_there() -> None:
    there = {stage.name: stage for stage in memory.stages(COSTS, memory.mode_named("encoder-first"), "cuda")}
    assert there["captions"].gpu == (11 + 3) * GIB + memory.CONTEXT_BYTES
    assert there["sampling"].gpu == (13 + 3) * GIB + round(2.2 * GIB) + memory.CONTEXT_BYTES
    assert there["decoding"].gpu == 3 * GIB + 22 * GIB + memory.CONTEXT_BYTES
    assert there["sampling"].host == 13 * GIB  # where the joint model waits, and is lent from
    there = {stage.name: stage for stage in memory.stages(COSTS, memory.mode_named("streamed"), "cuda")}
    assert there["captions"].host == (15 + 11) * GIB and there["captions"].gpu < 4 * GIB
    assert [pinned_bytes(size) for size in (0, 1, 4096, 4097, GIB - 1)] == [0, 1, 4096, 8192, GIB]


def test_every_presets_mode_is_one_that_runs() -> None:
    for name in preset_names():
        wanted = load_preset(name).runtime.memory
        assert wanted == "auto" or wanted in {mode.name for mode in memory.MODES}
    assert {load_preset(f"uniavgen-{size}gb").runtime.memory for size in (24, 12)} == {"tiled", "streamed"}


def test_weights_are_counted_to_the_byte() -> None:
    from uniavgen_cli.models.state_dict import load_module

    preset = load_preset("nano")
    with torch.device("meta"):
        model = UniAVGen(UniAVGenConfig(**preset.model))
    path = ROOT / "weights" / "nano" / "joint.safetensors.index.json"
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_module(lambda: UniAVGen(UniAVGenConfig(**preset.model)), path, dtype=dtype)
        real = sum(tensor.nbytes for tensor in loaded.state_dict().values())
        assert costs.tensor_bytes(model, dtype, FLOAT32_PARTS) == real
    block = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(100, 7)])})
    eight_bit.make_room(block, torch.bfloat16)
    assert costs.tensor_bytes(block, torch.bfloat16, eight_bit.FLOAT32_PARTS) == 700 + 4 * 7 + 2 * 7


def test_the_full_sizes_are_those_of_the_released_parts() -> None:
    """7.1 B parameters, of which 13.3 GiB in bfloat16 and float32."""
    preset = load_preset("uniavgen")
    with torch.device("meta"):
        model = UniAVGen(UniAVGenConfig(**preset.model))
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_056_422_687
    assert costs.tensor_bytes(model, torch.bfloat16, FLOAT32_PARTS) / GIB == pytest.approx(13.30, abs=0.01)


@pytest.mark.slow
def test_few_blocks_tell_what_all_allocate() -> None:
    """The sampling stage is counted with two blocks; here also with all."""
    preset = load_preset("nano", ["sampling.skip_block=null"])
    config, spec = UniAVGenConfig(**preset.model), ClipSpec(num_frames=17, height=64, width=64)
    with without_values():
        few = costs._sampling(config, preset, spec, "cpu", torch.float32, torch.float32).peak_bytes
    with without_values():  # anew, for the tables that are kept
        all_blocks = count(costs.joint_call(config, preset, spec, torch.float32, batched=True)).peak_bytes
    state = 4 * (
        config.video_latent_channels * 5 * 4 * 4 + 106 * 80
    )  # of which the loop holds three beside the step
    assert few - 3 * state == pytest.approx(all_blocks, rel=0.01)


def run_plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["plan", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_plan_of_nano_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    small = (
        "--size",
        "64",
        "--duration",
        "1",
        "--set",
        "runtime.device=cpu",
        "--set",
        "runtime.dtype=float32",
    )
    code, out, err = run_plan(capsys, "--json", *small)
    assert code == 0, err
    report = json.loads(out)
    assert [stage["name"] for stage in report["stages"]] == ["captions", "encoding", "sampling", "decoding"]
    assert report["window"] == {"frames": 17, "width": 64, "height": 64} and report["device"] == "cpu"
    assert all(stage["gpu"] == 0 and stage["host"] > 50 * 2**20 for stage in report["stages"])
    code, out, err = run_plan(capsys, "--gpu-memory", "1GB", *small)
    assert code == 0 and "it would run resident" in out and "8-bit" in out


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("--gpu-memory much", ("--gpu-memory", "much")),
        ("--gpu-memory 0GB", ("--gpu-memory", "0GB")),
        ("is no size", ("--size", "big")),
        ("can't be made", ("--size", "100x100")),
        ("no task", ("--task", "paint")),
        ("longer than", ("--duration", "60")),
        ("--duration -1", ("--duration", "-1")),
        ("runtime.memory", ("--set", "runtime.memory=small")),
    ],
)
def test_a_plan_refuses_in_one_line(
    said: str, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_plan(capsys, *arguments)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1


def test_amounts_of_memory() -> None:
    assert [parse_memory(text) for text in ("24GB", "24", "11500MB", "0.5 GiB")] == [
        24 * GIB,
        24 * GIB,
        11500 * 2**20,
        GIB // 2,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["generate", "dub"])
def test_the_plan_is_what_a_clip_takes(task: str) -> None:
    """Nano on a CPU, in a process of its own: the peak over what is there once all is imported."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "memory_plan.py"), "--task", task],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["predicted_mib"] == pytest.approx(report["measured_mib"], rel=0.10), report


@pytest.mark.slow
def test_the_released_preset_is_planned_without_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    code, out, err = run_plan(capsys, "--preset", "uniavgen", "--gpu-memory", "24GB", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["window"] == {"frames": 81, "width": 1312, "height": 736} and report["mode"] == "tiled"
    assert report["bytes"]["encoder"] / GIB == pytest.approx(10.58, abs=0.01)  # 5.68 B parameters
    assert report["bytes"]["vae"] / GIB == pytest.approx(2.63, abs=0.01)
    assert report["bytes"]["vocoder"] / 4 == pytest.approx(115.4e6, rel=0.001)


def engine_of(path: str, *overrides: str) -> Engine:
    """A tiny engine whose joint model has no weight at zero, so that every pass matters."""
    engine = Engine.from_preset(path, overrides)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in engine.model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return engine


def test_the_engine_runs_in_the_presets_mode_and_guides_its_interval(tmp_path: Path) -> None:
    path = str(write_tiny_preset(tmp_path))

    def made(*overrides: str) -> np.ndarray:
        return engine_of(path, *overrides).generate("a woman", speech="Hello.", steps=2, seed=1).frames

    assert engine_of(path, "runtime.memory=streamed").mode.name == "streamed"
    guided = made()
    assert np.array_equal(guided, made("runtime.memory=streamed"))
    unguided = made("sampling.video_guidance=1", "sampling.audio_guidance=1")
    assert np.array_equal(unguided, made("sampling.guidance_to=0"))
    assert not np.array_equal(unguided, guided)


class Full:
    """A part that asks for more memory than any machine has, in torch's own words."""

    def __call__(self, *_: object, **__: object) -> None:
        torch.empty(2**58, dtype=torch.uint8)


def test_memory_that_runs_out_names_the_next_smaller_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While weights are loaded, while a clip is made, and whatever class torch gives it."""
    path = str(write_tiny_preset(tmp_path))
    engine = Engine.from_preset(path, ["runtime.memory=tiled"])
    monkeypatch.setattr(engine, "model", SimpleNamespace(config=engine.model.config, modules=lambda: ()))
    monkeypatch.setattr(memory, "apply_mode", Full())
    with pytest.raises(
        OutOfMemoryError, match="frames of 64x64 do not fit the memory of cpu; take a smaller"
    ):
        engine.generate("a woman", speech="Hello.", steps=1, seed=1)
    with pytest.raises(OutOfMemoryError, match="memory of cuda; --set runtime.memory=8-bit needs less"):
        with _fitting("a clip", engine.mode, "cuda"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(RuntimeError, match="shapes"), _fitting("a clip", engine.mode, "cuda"):
        raise RuntimeError("shapes do not match")
    monkeypatch.setattr(memory, "loader", lambda mode: Full())
    with pytest.raises(OutOfMemoryError, match="the weights of preset tiny do not fit the memory of cpu"):
        Engine.from_preset(path)
    for words in (
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ):
        assert known(RuntimeError(words)).exit_code == 6


def test_a_mode_that_was_chosen_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_tiny_preset(tmp_path))
    monkeypatch.chdir(tmp_path)
    line = [
        "generate",
        "--prompt",
        "a woman",
        "--preset",
        path,
        "--seed",
        "1",
        "-o",
        "made.mp4",
        "--overwrite",
    ]
    assert main(line) == 0
    assert "memory mode" not in capsys.readouterr().err  # nothing to choose
    assert main([*line, "--set", "runtime.memory=streamed"]) == 0
    assert "memory mode streamed: asked for\n" in capsys.readouterr().err
