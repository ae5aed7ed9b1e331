"""The benchmark of the full size: what it counts, where that can be checked, and its timing on a CPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import full_size  # noqa: E402

from uniavgen_cli.config import load_preset  # noqa: E402
from uniavgen_cli.engine import eight_bit  # noqa: E402
from uniavgen_cli.models.state_dict import FLOAT32_PARTS  # noqa: E402
from uniavgen_cli.models.uniavgen import UniAVGenConfig  # noqa: E402
from uniavgen_cli.shapes import ClipSpec  # noqa: E402

SMALL = ClipSpec(num_frames=17, height=64, width=96)


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    full_size.main(["--config", "tiny", *arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_measures_the_released_configuration() -> None:
    preset = load_preset("uniavgen")
    assert UniAVGenConfig(**full_size.CONFIGS["full"]) == UniAVGenConfig(**preset.model)
    assert full_size.SKIP_BLOCK["full"] == preset.sampling.skip_block
    assert full_size.FRAMES["full"] == preset.clip.max_frames
    assert full_size.FLOAT32_PARTS == FLOAT32_PARTS


def test_the_page_has_the_exact_weights() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    found = full_size.weight_bytes("full")
    assert found["joint model"] == {"parameters": 7_056_422_687, "bytes": 14_284_234_302}
    for part, counts in found.items():
        numbers = " | ".join(f"{n:,}".replace(",", " ") for n in counts.values())
        line = next(line for line in page.splitlines() if part in line and numbers.split(" | ")[0] in line)
        assert f"| {numbers} |" in line


@pytest.mark.slow
def test_few_blocks_tell_the_operations_of_all() -> None:
    few = full_size.count_case("tiny", SMALL, "generate", "ours")
    all_of_them = full_size.count_case("tiny", SMALL, "generate", "ours", pairs=None)
    assert few[:2] == all_of_them[:2]
    assert few[2] == pytest.approx(all_of_them[2], rel=0.01)


def test_attention_is_counted_as_its_formula_says() -> None:
    """4 q k d a pass: of the streams to themselves and to the texts, and a little to each other."""
    _, attention, _ = full_size.count_case("tiny", SMALL, "dub", "ours")
    config, blocks = full_size.CONFIGS["tiny"], full_size.CONFIGS["tiny"]["num_blocks"]
    passes = 2 * blocks - 1  # one block is left out of one pass
    video, audio = (SMALL.latent_frames + 1) * SMALL.tokens_per_frame, SMALL.audio_tokens
    video_keys = passes * (video + config["caption_tokens"])
    audio_keys = passes * audio + blocks * full_size.SPEECH_TOKENS + (blocks - 1) * 10
    expected = 4 * (video * video_keys * config["video_dim"] + audio * audio_keys * config["audio_dim"])
    assert expected < attention < 1.03 * expected


@pytest.mark.slow
def test_counting_tells_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    about, *counted = rows(capsys, "--count", "--task", "generate")
    assert about["joint model"]["parameters"] > 100_000 and about["config"] == "tiny"
    forms = {row["form"]: row for row in counted}
    assert set(forms) == {"ours", "ours, one batch", "textbook"}
    assert forms["textbook"]["tflop_a_step"] > forms["ours"]["tflop_a_step"] > 0
    batched = forms["ours, one batch"]
    assert batched["tflop_a_step"] == pytest.approx(forms["ours"]["tflop_a_step"], rel=0.05)
    assert batched["peak_gib_beside_weights"] > forms["ours"]["peak_gib_beside_weights"]


def test_it_times_every_form_and_mode(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_size, "counted", full_size_counts)  # tested above
    _, *measured = rows(capsys, "--task", "animate", "--device", "cpu", "--repeats", "1")
    cases = [(row["task"], row["form"], row["mode"]) for row in measured]
    assert cases == [
        ("animate", "ours", "resident"),
        ("generate", "ours, one batch", "resident"),
        ("generate", "textbook", "resident"),
        ("generate", "ours", "8-bit"),
        ("generate", "ours", "streamed"),
    ]
    assert all(row["seconds"] > 0 and row["share_of_matrix_rate"] > 0 for row in measured)
    assert torch.get_default_device() == torch.device("cpu")


def full_size_counts(name: str, spec: ClipSpec, tasks: list[str]) -> list[dict]:
    forms = [*((task, "ours") for task in tasks), ("generate", "ours, one batch"), ("generate", "textbook")]
    return [{"task": task, "form": form, "tflop_a_step": 1e-4} for task, form in forms]


def test_a_case_that_does_not_fit_stops_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small card: weights that can't be filled in, and a step that runs out."""

    def too_small(model: torch.nn.Module, device: str) -> None:
        if not any(isinstance(part, eight_bit.EightBitLinear) for part in model.modules()) and next(fills):
            raise torch.OutOfMemoryError("CUDA out of memory")
        really_fill(model, device)

    def runs_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    really_fill, fills = full_size.fill, iter((True, False))  # resident, and then streamed
    monkeypatch.setattr(full_size, "fill", too_small)
    monkeypatch.setattr(full_size, "counted", full_size_counts)
    monkeypatch.setattr(full_size, "streamed", runs_out)
    _, *measured = rows(capsys, "--task", "generate", "--device", "cpu", "--repeats", "1")
    assert [(row["mode"], row["seconds"] is None) for row in measured] == [
        ("resident", True),
        ("resident", True),
        ("resident", True),
        ("8-bit", False),
        ("streamed", True),
    ]


def test_without_a_gpu_it_says_what_needs_none(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        full_size.main(["--config", "tiny"])
    assert "--count needs none" in capsys.readouterr().err


@pytest.mark.gpu
def test_it_measures_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    about, *measured = rows(capsys, "--task", "generate", "--repeats", "1")
    assert about["device"] == torch.cuda.get_device_name() and about["cuda"]
    assert {row["mode"] for row in measured} == {"resident", "8-bit", "streamed"}
    assert all(row["seconds"] > 0 and row["peak_gib"] > 0 for row in measured)
