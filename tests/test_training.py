"""The training loop and the joint stage, on real drawn clips and a model of the smallest size."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import write_tiny_preset
from torch import Tensor, nn

from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
from uniavgen_cli.config import Preset, load_preset, weights_folder
from uniavgen_cli.data import cache
from uniavgen_cli.data.dataset import sample_clip
from uniavgen_cli.engine.tasks import TASKS
from uniavgen_cli.errors import WeightsError
from uniavgen_cli.models.state_dict import load_module
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
from uniavgen_cli.training import joint_stage as joint
from uniavgen_cli.training.trainer import Progress, Stage, rate, run


def line_stage(steps: int = 40, **changes: object) -> Stage:
    """Fits y = 3 x + 1; everything about a batch follows from its step."""
    torch.manual_seed(0)

    def batch(step: int) -> dict[str, Tensor]:
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return {"x": x, "y": 3 * x + 1}

    def loss(module: nn.Module, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {"square": (module(batch["x"]) - batch["y"]).square().mean(1)}

    def export(weights: dict[str, Tensor], folder: Path) -> None:
        torch.save(weights, folder / "weights.pt")

    return replace(
        Stage(
            name="line",
            module=nn.Linear(1, 1),
            batch=batch,
            loss=loss,
            export=export,
            steps=steps,
            lr=0.3,
            warmup=2,
            ema=0.5,
        ),
        **changes,
    )


def test_a_run_learns_reports_and_exports(tmp_path: Path) -> None:
    seen: list[Progress] = []
    assert run(line_stage(), tmp_path, report=seen.append, report_every=10)
    assert [p.step for p in seen] == [10, 20, 30, 40]
    assert seen[-1].losses["square"] < 0.05 * seen[0].losses["square"]
    assert torch.load(tmp_path / "weights.pt")["weight"].item() == pytest.approx(3, abs=0.2)
    assert len((tmp_path / "losses.csv").read_text().splitlines()) == 4


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    run(line_stage(), tmp_path / "whole")
    stage = line_stage()

    def interrupting(step: int) -> dict[str, Tensor]:
        if step == 17:
            os.kill(os.getpid(), signal.SIGINT)
        return line_stage().batch(step)

    assert not run(replace(stage, batch=interrupting), tmp_path / "cut")
    assert not (tmp_path / "cut" / "weights.pt").exists()
    assert run(line_stage(), tmp_path / "cut")
    whole, cut = (torch.load(tmp_path / name / "weights.pt") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(line_stage(steps=2), tmp_path)
    with pytest.raises(WeightsError, match="does not fit this model"):
        run(line_stage(module=nn.Linear(2, 1)), tmp_path)


def test_a_step_without_a_finite_gradient_is_left_out(tmp_path: Path) -> None:
    stage = line_stage()

    def broken(module: nn.Module, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        losses = stage.loss(module, batch, step)
        return {"square": losses["square"] * (float("nan") if step == 20 else 1.0)}

    run(replace(stage, loss=broken), tmp_path)
    assert torch.isfinite(torch.load(tmp_path / "weights.pt")["weight"]).all()


def test_the_rate_warms_up_stays_and_falls() -> None:
    stage = line_stage(steps=100, warmup=10, decay_from=0.5)
    assert rate(0, stage) == pytest.approx(0.1)
    assert rate(30, stage) == 1
    assert rate(50, stage) == 1 > rate(75, stage) > rate(99, stage) > 0.01


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Preset:
    return load_preset(write_tiny_preset(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def bank(tiny: Preset) -> joint.ClipBank:
    """Three drawn, speaking clips of 33 frames through the tiny codecs."""
    folder = weights_folder(tiny)
    vae = VideoVAE.load(folder / "video_vae.safetensors", VideoVAEConfig(**tiny.video_vae))
    captions = CaptionEncoder.load(folder / "caption.safetensors", CaptionConfig(**tiny.caption))
    clips = []
    for index in range(3):
        clip = sample_clip(3, index, lengths=(33,), sizes=((64, 64),))
        texts = {"text": clip.text, "reference_text": clip.reference_text, "caption": clip.caption.text}
        tensors = {**cache.sound_arrays(clip), **cache.picture_arrays(clip, vae)}
        clips.append(cache.CachedClip(tensors, texts))
    return joint.ClipBank(clips, captions)


def tiny_model(tiny: Preset) -> UniAVGen:
    torch.manual_seed(0)
    return UniAVGen(UniAVGenConfig(**tiny.model))


def how(**changes: object) -> joint.JointTraining:
    return joint.JointTraining(**{"steps": 30, "batch_size": 4, "bf16": False, **changes})


def test_a_cached_clip_is_what_the_model_reads(bank: joint.ClipBank) -> None:
    group = bank.groups[0].tensors
    assert group["mel"].shape == (3, 206, 80) and group["phonemes"].shape == (3, 206)
    assert group["latents"].shape == (3, 9, 4, 4, 4)
    assert group["face_mask"].shape == (3, 9, 2, 2) and 0 < group["face_mask"].mean() < 1
    assert (
        group["mouth_mask"].shape == (3, 9, 4, 4) and group["mouth_mask"].mean() < group["face_mask"].mean()
    )
    assert (group["phonemes"] > 0).float().mean() > 0.2


def test_every_task_comes_by_its_odds_and_gives_what_its_row_says(tiny: Preset, bank: joint.ClipBank) -> None:
    stage = joint.joint_stage(tiny_model(tiny), bank, how(steps=300))
    seen: dict[tuple[bool, bool], int] = {}
    for step in range(120):
        batch = stage.batch(step)
        frames, tokens = batch["latents"].shape[2], batch["mel"].shape[1]
        directions = batch["a2v"], batch["v2a"]
        seen[directions] = seen.get(directions, 0) + 1
        if not batch["a2v"]:
            assert batch["given_video"] == frames and batch["given_audio"] == 0
        if batch["given_audio"] == tokens:
            assert not batch["v2a"] and batch["given_video"] == 1
            assert not batch["phonemes"][:, -tokens:].any() and (batch["speech"] == -1).all()
        elif batch["given_audio"]:
            assert 1 <= batch["given_video"] < frames
    total = sum(row.odds for row in TASKS.values())
    no_a2v, no_v2a = (
        sum(row.odds for row in TASKS.values() if not getattr(row, name)) / total for name in ("a2v", "v2a")
    )
    assert seen[False, True] / 120 == pytest.approx(no_a2v, abs=0.12)
    assert seen[True, False] / 120 == pytest.approx(no_v2a, abs=0.12)


def test_a_batch_follows_from_its_step(tiny: Preset, bank: joint.ClipBank) -> None:
    first, again, other = (joint.joint_stage(tiny_model(tiny), bank, how()).batch(step) for step in (5, 5, 6))
    assert torch.equal(first["t"], again["t"]) and torch.equal(first["phonemes"], again["phonemes"])
    assert not torch.equal(first["t"], other["t"])


@pytest.mark.parametrize("alone", [False, True])
def test_the_joint_model_learns_and_its_weights_load(
    alone: bool, tiny: Preset, bank: joint.ClipBank, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    stage = joint.joint_stage(tiny_model(tiny), bank, how(steps=60, lr=5e-3, audio_alone=alone))
    assert run(stage, tmp_path, report=seen.append, report_every=20)
    assert seen[-1].losses["audio"] < 0.9 * seen[0].losses["audio"]
    if not alone:
        assert seen[-1].losses["video"] < 0.98 * seen[0].losses["video"]
    model = load_module(
        lambda: UniAVGen(UniAVGenConfig(**tiny.model)), tmp_path / "joint.safetensors.index.json"
    )
    assert not model.training


def test_the_mask_loss_fades_and_is_of_the_faces_box(tiny: Preset, bank: joint.ClipBank) -> None:
    stage = joint.joint_stage(tiny_model(tiny), bank, how(steps=100))
    batch = stage.batch(0)
    torch.manual_seed(0)
    early, late = (stage.loss(stage.module, batch, step) for step in (0, 40))
    assert late["mask"].mean().item() == pytest.approx(early["mask"].mean().item() * 0.5, rel=1e-3)
    assert "mask" not in stage.loss(stage.module, batch, 90)


def test_jitter_moves_phonemes_and_keeps_their_order() -> None:
    line = torch.arange(1, 201)
    moved = joint._jittered(line, np.random.default_rng(1))
    assert not torch.equal(moved, line)
    assert (moved.diff() >= -3).all() and (moved - line).abs().max() < 60
