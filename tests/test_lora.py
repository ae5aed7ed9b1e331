"""Adapters: what of the model learns, the file they travel in, and the clips that are made with them."""

import json
from pathlib import Path

import pytest
import torch
from joint_inputs import audio_stream, conditions, on, video_stream
from joint_inputs import tiny_model as tiny_joint
from released_folder import write_released
from safetensors.torch import load_file, safe_open, save_file
from tiny_model import write_tiny_preset
from torch import nn

from uniavgen_cli.cli import main
from uniavgen_cli.config import Preset, load_preset, weights_files
from uniavgen_cli.engine.engine import Engine
from uniavgen_cli.engine.provenance import from_tags
from uniavgen_cli.engine.weights import file_sha256
from uniavgen_cli.errors import WeightsError
from uniavgen_cli.media.video import read_metadata
from uniavgen_cli.models.lora import add_lora, save_lora
from uniavgen_cli.models.state_dict import load_module
from uniavgen_cli.models.uniavgen import JointOutput, UniAVGen, UniAVGenConfig
from uniavgen_cli.training import lora

ALPHA = 8.0


def run(model: nn.Module) -> JointOutput:
    return model(video_stream(2), audio_stream(2), conditions(12, 15), on(2))


def joint_forward(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        made = run(model)
    return made.video, made.audio


def moved_adapters(model: UniAVGen) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Adapters of rank 3 in the model, none of them at the zero they start from."""
    lora.add_adapters(model, 3, ALPHA)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return lora.adapters_of(dict(model.named_parameters()))


def test_fresh_adapters_change_nothing_and_are_all_that_trains() -> None:
    plain, adapted = tiny_joint(), tiny_joint()
    lora.add_adapters(adapted, 4, ALPHA)
    for one, other in zip(joint_forward(plain), joint_forward(adapted), strict=True):
        torch.testing.assert_close(one, other)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    layers = lora.target_layers(plain)
    assert len(trained) == 2 * len(layers)
    kinds = {(name.split(".")[0], name.split(".")[-1]) for name in layers}
    assert {("blocks", "q"), ("audio_blocks", "v"), ("a2v_blocks", "o"), ("v2a_blocks", "k")} <= kinds
    assert not any("mask_head" in name for name in layers)


def test_adapters_in_a_file_give_what_they_gave_in_training(tmp_path: Path) -> None:
    trained, plain = tiny_joint(), tiny_joint()
    save_lora(moved_adapters(trained), tmp_path / "lora.safetensors", ALPHA)
    with safe_open(tmp_path / "lora.safetensors", framework="pt") as file:
        assert (file.metadata()["rank"], file.metadata()["alpha"]) == ("3", "8")
    without = joint_forward(plain)
    assert add_lora(plain, tmp_path / "lora.safetensors") == len(lora.target_layers(tiny_joint()))
    for one, other, before in zip(joint_forward(plain), joint_forward(trained), without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert (one - before).abs().max() > 0.1


def test_every_adapter_learns(tmp_path: Path) -> None:
    model = tiny_joint()
    moved_adapters(model)
    made = run(model)
    (made.video.square().mean() + made.audio.square().mean()).backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and not (p.grad != 0).any()]
    assert not silent


@pytest.mark.parametrize(
    "damage, problem",
    [
        (lambda t, m: t.update({k: v[1:] for k, v in t.items() if "ffn.0.lora_A" in k}), "not (3, "),
        (lambda t, m: t.pop(next(iter(t))), "is missing, not"),
        (lambda t, m: t.update({"nose.lora_A.weight": torch.zeros(3, 4)}), "no layer of the model"),
        (lambda t, m: t.update({"other": torch.zeros(1)}), "other is unknown"),
        (lambda t, m: m.pop("rank"), "does not say its rank and alpha"),
        (lambda t, m: t.clear(), "it holds no adapters"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_in_one_line(damage, problem: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "lora.safetensors"
    save_lora(moved_adapters(tiny_joint()), path, ALPHA)
    tensors, metadata = load_file(path), {"rank": "3", "alpha": "8"}
    damage(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    model = tiny_joint()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        add_lora(model, path)
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_files_are_no_lora(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("words")
    for name, problem in (("words", "can't be read as .safetensors"), ("gone", "is not there")):
        with pytest.raises(WeightsError, match=problem):
            add_lora(tiny_joint(), tmp_path / name)


def adapted_preset(path: Path, folder: Path) -> Preset:
    """The preset with a LoRA of its own shapes."""
    preset = load_preset(path)
    model = load_module(lambda: UniAVGen(UniAVGenConfig(**preset.model)), weights_files(preset)["joint"])
    save_lora(moved_adapters(model), folder / "lora.safetensors", ALPHA)
    return load_preset(path, [f"lora={folder / 'lora.safetensors'}"])


def test_the_released_layout_takes_adapters(tmp_path: Path) -> None:
    path = write_released(tmp_path)
    preset = adapted_preset(path, tmp_path)
    plain, adapted = Engine.from_preset(load_preset(path)), Engine.from_preset(preset)
    changed = {
        name
        for name, value in adapted.model.state_dict().items()
        if not torch.equal(value, plain.model.state_dict()[name])
    }
    assert changed == {f"{layer}.weight" for layer in lora.target_layers(plain.model)}


def test_a_clip_is_made_with_adapters_says_so_and_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = write_tiny_preset(tmp_path)
    adapted_preset(preset, tmp_path)
    make = ["generate", "--speech", "Hello.", "--preset", str(preset), "--seed", "1", "--quiet", "-o"]
    assert main([*make, "plain.mp4"]) == 0
    assert main([*make, "adapted.mp4", "--lora", "lora.safetensors"]) == 0
    plain, adapted = (from_tags(read_metadata(name)) for name in ("plain.mp4", "adapted.mp4"))
    assert plain is not None and adapted is not None
    assert plain["lora_sha256"] is None and adapted["lora_sha256"] == file_sha256(Path("lora.safetensors"))
    assert plain["weights_sha256"] == adapted["weights_sha256"]
    assert Path("plain.mp4").read_bytes() != Path("adapted.mp4").read_bytes()

    assert main(["rerun", "adapted.mp4", "-o", "again.mp4", "--quiet"]) == 0
    assert Path("again.mp4").read_bytes() == Path("adapted.mp4").read_bytes()

    assert main([*make, "private.mp4", "--lora", "lora.safetensors", "--private"]) == 0
    private = from_tags(read_metadata("private.mp4"))
    assert (
        private is not None
        and "lora" in private["left_out"]
        and "lora.safetensors" not in json.dumps(private)
    )

    capsys.readouterr()
    Path("lora.safetensors").write_bytes(Path("lora.safetensors").read_bytes()[:-1] + b"\1")
    other = main(["rerun", "adapted.mp4", "-o", "third.mp4"])
    assert other == WeightsError.exit_code and "which is missing or has changed" in capsys.readouterr().err
    assert main([*make, "x.mp4", "--lora", "nowhere.safetensors"]) == WeightsError.exit_code
    assert "there is no LoRA nowhere.safetensors" in capsys.readouterr().err
