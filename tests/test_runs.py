"""Runs by the command: cut by kill -9 and gone on with, from weights alone, with adapters, and watched."""

import csv
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from own_videos import SIDE, speaker, write_speaker
from tiny_model import write_tiny_preset
from torch import nn
from two_processes import captions_of

from uniavgen_cli.cli import main
from uniavgen_cli.codecs.load import load_picture_codec
from uniavgen_cli.config import load_preset
from uniavgen_cli.data import cache
from uniavgen_cli.evaluation.mask import mask_iou
from uniavgen_cli.media.probe import require_video
from uniavgen_cli.models.lora import add_lora
from uniavgen_cli.models.state_dict import read_tensors
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
from uniavgen_cli.training import joint_stage as joint
from uniavgen_cli.training.ledger import TASK_HEADER
from uniavgen_cli.training.trainer import Watch, run
from uniavgen_cli.training.watches import drawn_unseen, face_mask_iou

STEPS = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny preset, its recipe, and the clips of two videos."""
    folder = tmp_path_factory.mktemp("world")
    path = write_tiny_preset(folder)
    recipe = {
        "part": "joint", "start_from": "installed", "data": str(folder / "latents"), "steps": STEPS,
        "batch_size": 2, "bf16": False, "muon": True, "checkpoint_every_s": 0.2, "lora_rank": 0,
        "held_out": 0, "sample_every": 0, "mask_every": 0,
    }  # fmt: skip
    values = yaml.safe_load(path.read_text()) | {"train": recipe}
    values["clip"]["short_side"] = SIDE
    path.write_text(yaml.safe_dump(values))
    for index in range(2):
        write_speaker(folder / "videos" / f"{index}.mp4", speaker(index))
    prepare = ["prepare", str(folder / "videos"), "-o", str(folder / "latents"), "--quiet"]
    assert main([*prepare, "--preset", str(path)]) == 0
    return folder


def train(world: Path, run: str, *more: str) -> list[str]:
    return ["train", "--preset", str(world / "tiny.yaml"), "-o", str(world / run), "--quiet", *more]


def rows(run: Path) -> list[list[str]]:
    """The rows of losses.csv without the speed."""
    with (run / "losses.csv").open(newline="") as file:
        return [[row[0], *row[2:]] for row in csv.reader(file)]


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    assert main(train(world, "whole")) == 0
    return world / "whole"


def test_a_killed_run_goes_on_as_if_nothing_had_been(world: Path, whole: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "uniavgen_cli", *train(world, "cut")])
    log = world / "cut" / "losses.csv"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    checkpoint = world / "cut" / "checkpoint.pt"
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < STEPS
    assert main(train(world, "cut")) == 0
    assert rows(world / "cut") == rows(whole) and len(rows(whole)) == STEPS // 20
    assert (world / "cut" / "losses-by-task.csv").read_text() == (whole / "losses-by-task.csv").read_text()
    cut, unbroken = (read_tensors(run / "joint.safetensors.index.json") for run in (world / "cut", whole))
    assert all(torch.equal(cut[name], unbroken[name]) for name in unbroken)


def test_losses_are_told_apart_by_task_and_timestep(whole: Path) -> None:
    with (whole / "losses-by-task.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == TASK_HEADER
    # one clip a video: no other to listen to, so no task with a voice
    assert {row["task"] for row in table} == {"generate", "continue", "dub", "animate"}
    assert not any(row["loss"] == "video" for row in table if row["task"] == "dub")
    assert not any(row["loss"] == "audio" for row in table if row["task"] == "animate")
    assert all(float(row["t_to"]) - float(row["t_from"]) == pytest.approx(0.2) for row in table)
    # every sample of every step is in one bin of its task: 20 steps of 2 samples a report
    first = [row for row in table if row["step"] == "20"]
    counted = sum(int(row["samples"]) for row in first if row["loss"] == "audio")
    counted += sum(
        int(row["samples"]) for row in first if row["task"] == "animate" and row["loss"] == "video"
    )
    assert counted == 40


def test_from_weights_alone_a_run_warms_up(world: Path, whole: Path) -> None:
    index = whole / "joint.safetensors.index.json"
    assert main(train(world, "on", "--set", f"train.start_from={index}", "--set", "train.steps=20")) == 0
    checkpoint = torch.load(world / "on" / "checkpoint.pt", weights_only=True)
    adamw, muon = checkpoint["optimizers"]
    rates = [group["lr"] for group in adamw["param_groups"] + muon["param_groups"]]
    assert checkpoint["step"] == 20 and all(0 < rate <= 0.2 * 1e-3 for rate in rates)  # of 100 steps' warm-up
    before, after = read_tensors(index), read_tensors(world / "on" / "joint.safetensors.index.json")
    moved = max((after[name].float() - before[name].float()).abs().max().item() for name in before)
    assert 0 < moved < 0.05


def test_adapters_are_trained_beside_the_weights(world: Path, whole: Path) -> None:
    # a head from scratch is zero and lets nothing through to an adapter
    start = ["--set", f"train.start_from={whole / 'joint.safetensors.index.json'}", "--set", "train.steps=25"]
    assert main(train(world, "lora", "--data", str(world / "latents"), "--lora", "2", *start)) == 0
    state = torch.load(world / "lora" / "checkpoint.pt", weights_only=True)
    assert state["module"] and all("lora_" in name for name in state["module"])
    assert not list((world / "lora").glob("joint*"))
    preset = load_preset(world / "tiny.yaml")
    model = UniAVGen(UniAVGenConfig(**preset.model))
    model.load_state_dict(read_tensors(whole / "joint.safetensors.index.json"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_lora(model, world / "lora" / "lora.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert main(train(world, "lora", "--lora", "3", *start)) == 5  # of another rank: said, not trained on


def test_a_watch_sees_the_averaged_weights_and_leaves_the_run_as_it_was(world: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, bool, torch.Tensor]] = []

    def look(module: nn.Module, step: int, folder: Path) -> None:
        seen.append((step, module.training, module.state_dict()["head.head.weight"].clone()))

    clips = cache.load(world / "latents", pictures=True)
    preset = load_preset(world / "tiny.yaml")
    how = joint.JointTraining(steps=9, batch_size=2, bf16=False)

    def stage() -> joint.Stage:
        torch.manual_seed(0)
        model = UniAVGen(UniAVGenConfig(**preset.model))
        return joint.joint_stage(model, joint.ClipBank(clips, captions_of(preset)), how)

    watched = replace(stage(), watches=(Watch(3, look),))
    assert run(watched, tmp_path / "watched", report_every=3) and run(
        stage(), tmp_path / "plain", report_every=3
    )
    assert [(step, training) for step, training, _ in seen] == [(3, False), (6, False), (9, False)]
    exported = read_tensors(tmp_path / "watched" / "joint.safetensors.index.json")
    assert torch.equal(seen[-1][2].bfloat16(), exported["head.head.weight"].bfloat16())
    assert rows(tmp_path / "watched") == rows(tmp_path / "plain")


def test_a_run_shows_a_clip_and_how_the_mask_fits_unseen_faces(world: Path) -> None:
    more = [f"train.{key}" for key in ("steps=12", "sample_every=12", "mask_every=4", "held_out=1")]
    assert main(train(world, "seen", *(word for key in more for word in ("--set", key)))) == 0
    made = require_video(world / "seen" / "sample-000012.mp4").video
    assert made is not None and made.num_frames >= 9 and (made.height, made.width) == (SIDE, SIDE)
    with (world / "seen" / "face-mask.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == ["4", "8", "12"]
    assert all(0 <= float(row["iou"]) <= 1 for row in table)


def test_a_taught_mask_finds_unseen_faces(world: Path) -> None:
    """The mask loss alone, on three speakers; the fourth one's face is found."""
    preset = load_preset(world / "tiny.yaml")
    *taught, other = drawn_unseen(load_picture_codec(preset), SIDE, count=4)
    torch.manual_seed(0)
    model = UniAVGen(UniAVGenConfig(**preset.model))
    unseen = joint.ClipBank([other], captions_of(preset))
    before = face_mask_iou(model, unseen).mean()
    how = joint.JointTraining(steps=160, batch_size=2, bf16=False, carried=0.0, odds={"generate": 1.0})
    stage = joint.joint_stage(model, joint.ClipBank(taught, captions_of(preset)), how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(160):
        optimizer.zero_grad()
        stage.loss(model, stage.batch(step), 0)["mask"].mean().backward()
        optimizer.step()
    after = face_mask_iou(model, unseen).mean()
    assert after > 0.6 > before


def test_the_overlap_of_mask_and_face_by_hand() -> None:
    mask = torch.tensor([[0.9, 0.6, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4], [0.9, 0.0, 0.0, 0.0]])
    face = torch.tensor([[1.0, 0.8, 0.7, 0.5], [0.0, 0.5, 0.1, 0.0], [0.0, 1.0, 0.0, 0.0]])
    # two of the three that either marks; none by either; one each, and not the same
    assert mask_iou(mask, face).tolist() == pytest.approx([2 / 3, 1.0, 0.0])
