"""From videos to a model that plays one of them back: prepare, train and animate, as typed."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
import yaml
from own_videos import SIDE, Speaker, speaker, write_speaker

from uniavgen_cli.cli import main
from uniavgen_cli.config import find_weights, load_preset, weights_folder
from uniavgen_cli.data import cache
from uniavgen_cli.engine.engine import Engine
from uniavgen_cli.errors import InputError
from uniavgen_cli.evaluation.opening import load_opening_reader
from uniavgen_cli.evaluation.synchrony import correlation
from uniavgen_cli.media.video import read_frames
from uniavgen_cli.training.stages import build_stage

STEPS = 560
RECIPE = {
    "part": "joint", "data": "latents", "start_from": "", "steps": STEPS, "batch_size": 2, "lr": 0.003,
    "bf16": False, "picture_share": 0.0, "dropped": 0.0, "carried": 0.0, "odds": {"animate": 1.0},
    "sample_every": 0, "mask_every": 0, "lora_rank": 0, "held_out": 0,
}  # fmt: skip
SIZES = {
    "model": {
        "video_dim": 96, "video_heads": 3, "video_ffn_dim": 192,
        "audio_dim": 64, "audio_heads": 2, "audio_ffn_dim": 128,
        "num_blocks": 3, "interaction_blocks": [0, 1], "freq_dim": 32,
        "speech_text_dim": 16, "speech_conv_blocks": 1,
    },
    "sampling": {"steps": 10, "skip_block": 1, "video_guidance": 1.0, "audio_guidance": 1.0},
    "clip": {"max_frames": 33, "min_frames": 33},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small preset that has nano's codecs, two videos, and their clips."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "weights").mkdir()
    for part in ("video_vae", "vocoder", "caption"):
        name = f"{part}.safetensors"
        (folder / "weights" / name).symlink_to(weights_folder(load_preset("nano")) / name)
    recipe = {key: value for key, value in RECIPE.items() if key != "start_from"}
    recipe["data"] = str(folder / "latents")
    values = {"extends": "nano", "about": "for tests", "weights": str(folder / "weights"), **SIZES}
    (folder / "small.yaml").write_text(yaml.safe_dump({**values, "train": recipe}))
    for index in range(2):
        one = speaker(index)
        write_speaker(folder / "videos" / f"{index}.mp4", one)
        soundfile.write(folder / f"{index}.wav", one.clip.samples, 24_000)
        cv2.imwrite(str(folder / f"{index}.png"), one.frames[0][:, :, ::-1])
    assert main(["prepare", str(folder / "videos"), "-o", str(folder / "latents"), *preset(folder)]) == 0
    return folder


def preset(world: Path) -> list[str]:
    return ["--preset", str(world / "small.yaml"), "--quiet"]


def losses(run: Path, name: str) -> list[float]:
    """A loss, row by row."""
    with (run / "losses.csv").open(newline="") as file:
        rows = [dict(cell.split("=") for cell in row[2:]) for row in csv.reader(file)]
    return [float(row[name]) for row in rows]


def mouth_error(frames: np.ndarray, truth: Speaker) -> float:
    """Mean difference in grey levels where the mouth is drawn."""
    boxes = truth.clip.draw().mouth_boxes.round().astype(int)
    parts = [
        np.abs(frame[y0:y1, x0:x1].astype(float) - true[y0:y1, x0:x1]).mean()
        for frame, true, (x0, y0, x1, y1) in zip(frames, truth.frames, boxes, strict=True)
    ]
    return float(np.mean(parts))


@pytest.mark.slow
def test_two_videos_are_learnt_by_heart_and_one_is_played_back(world: Path) -> None:
    run = world / "run"
    assert main(["train", "--data", str(world / "latents"), "-o", str(run), *preset(world)]) == 0
    video = losses(run, "video")
    assert video[-1] < 0.1 * video[0]

    for shard in run.glob("joint*"):
        (world / "weights" / shard.name).symlink_to(shard)
    for index in range(2):
        truth, out = speaker(index), world / f"played-{index}.mp4"
        given = [str(world / f"{index}.png"), str(world / f"{index}.wav")]
        assert main(["animate", *given, "-o", str(out), "--seed", "3", *preset(world)]) == 0
        played = read_frames(out, 16, SIDE, SIDE)[:33]
        still = np.repeat(truth.frames[:1], 33, axis=0)
        assert np.abs(played.astype(float) - truth.frames).mean() < 6  # grey levels of 255
        assert mouth_error(played, truth) < 0.75 * mouth_error(still, truth)
        read = load_opening_reader(find_weights("nano/opening.safetensors")).read(played)
        assert correlation(read, truth.clip.draw().opening) > 0.9


def test_the_released_layout_learns_from_videos_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    from released_folder import write_released

    path = write_released(tmp_path)
    recipe = RECIPE | {"steps": 3, "start_from": "installed", "lora_rank": 2, "untold": 0.0, "odds": None}
    values = yaml.safe_load(path.read_text())
    values["clip"]["short_side"] = SIDE  # a face of 64 pixels is too small
    path.write_text(yaml.safe_dump({**values, "train": recipe | {"data": str(tmp_path / "latents")}}))
    write_speaker(tmp_path / "videos" / "a.mp4", speaker(0))
    write_speaker(tmp_path / "videos" / "b.mp4", speaker(1))
    (tmp_path / "videos" / "b.txt").write_text("今天天气很好，你好吗", encoding="utf-8")
    chosen = ["--preset", str(path), "--quiet"]
    assert main(["prepare", str(tmp_path / "videos"), "-o", str(tmp_path / "latents"), *chosen]) == 0
    clips = cache.load(tmp_path / "latents", pictures=True)
    assert [clip.tensors["latents"].shape[1:] for clip in clips] == [(48, 8, 8)] * 2
    assert clips[1].texts["text"] == "今天天气很好，你好吗" and not clips[1].tensors["phonemes"].any()
    assert main(["train", "--data", str(tmp_path / "latents"), "-o", str(tmp_path / "run"), *chosen]) == 0
    adapters = tmp_path / "run" / "lora.safetensors"
    preset = load_preset(path, [f"lora={adapters}"])
    assert Engine.from_preset(preset).model is not None
    with pytest.raises(InputError, match="were made with the video VAE of released"):
        build_stage(
            load_preset("nano-own", [f"train.data={tmp_path / 'latents'}"]), tmp_path, lambda *_: None
        )
