"""Memory on a GPU, where there is one: what streaming holds, and each mode under a cap of its name."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from joint_inputs import audio_stream, conditions, on, tiny_model, video_stream

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_memory  # noqa: E402

from uniavgen_cli.engine import memory  # noqa: E402
from uniavgen_cli.engine.streaming import layers_of, on_device_meanwhile, pinned_bytes, streamed  # noqa: E402
from uniavgen_cli.models.uniavgen import on_device  # noqa: E402


def test_every_mode_has_a_card_it_is_for() -> None:
    assert list(gpu_memory.CAPS) == [mode.name for mode in memory.MODES]
    assert sorted(gpu_memory.CAPS.values(), reverse=True) == list(gpu_memory.CAPS.values())


@pytest.mark.slow
def test_the_script_runs_where_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("diffusers", "transformers", "ftfy"):
        pytest.importorskip(name, reason="the extra `released` is not installed")
    tiny = ["--config", "tiny", "--device", "cpu", "--mode", "streamed", "--here"]
    gpu_memory.main(["--folder", str(tmp_path), *tiny])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["mode"] == "streamed" and row["measured"] == {}
    assert set(row["planned"]) == {"encoding", "sampling", "decoding"} and min(row["planned"].values()) > 0


@pytest.mark.gpu
def test_streaming_holds_two_layers_and_changes_nothing() -> None:
    wide = {"video_dim": 768, "video_heads": 6, "video_ffn_dim": 3072, "num_blocks": 12}
    model = tiny_model(**wide)
    inputs = [on_device(x, "cuda") for x in (video_stream(), audio_stream(), conditions(12))]
    layers = [sum(x.nbytes for x in layer.state_dict().values()) for layer in layers_of(model)]
    with torch.inference_mode():
        with on_device_meanwhile(model, "cuda"):
            before = model(*inputs, on())
        torch.cuda.empty_cache()
        outside = sum(x.nbytes for x in model.state_dict().values()) - sum(layers)
        for _ in range(2):  # the second time its layers are pinned already
            with streamed(model, "cuda"):
                there = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                outs = [model(*inputs, on()) for _ in range(3)]
                active = torch.cuda.memory_stats()["active_bytes.all.peak"]
            assert there >= outside
            assert active - there < 2.5 * max(layers) < sum(layers)
            for out in outs:
                torch.testing.assert_close((out.video, out.audio), (before.video, before.audio))
    piece = next(iter(layers_of(model)[0].parameters())).untyped_storage()
    assert all(x.is_pinned() for x in layers_of(model)[0].parameters())
    assert pinned_bytes(piece.nbytes()) < 2 * piece.nbytes()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("mode", gpu_memory.CAPS)
def test_a_mode_takes_what_is_planned(mode: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """At full size with random weights, each mode under torch's per-process memory cap set to its name."""
    import subprocess

    folder = tmp_path_factory.getbasetemp().parent / "full-size"
    whole = torch.cuda.get_device_properties(0).total_memory
    if whole < 0.95 * gpu_memory.CAPS[mode] * memory.GIB:
        pytest.skip(f"this GPU has {whole / memory.GIB:.0f} GiB")
    if not folder.exists() and shutil.disk_usage(folder.parent).free < 32 * memory.GIB:
        pytest.skip("no room for the random checkpoint")
    command = [sys.executable, gpu_memory.__file__, "--here", "--folder", str(folder), "--mode", mode]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads(done.stdout.splitlines()[-1])
    planned, measured = row["peaks"]
    assert planned == pytest.approx(measured, rel=0.10), row
