"""What each process under torchrun runs for test_processes.py: two_processes.py FOLDER PRESET."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
from uniavgen_cli.codecs.load import load_picture_codec
from uniavgen_cli.config import Preset, load_preset, weights_folder
from uniavgen_cli.data import cache
from uniavgen_cli.data.dataset import sample_clip
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
from uniavgen_cli.training import joint_stage as joint
from uniavgen_cli.training import processes
from uniavgen_cli.training.trainer import Batch, Stage, run

STEPS = 12


def curve_batch(number: int) -> Batch:
    """Batch `number` of points on a curve."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(number))
    return {"x": x, "y": x.sin().sum(1, keepdim=True)}


def curve_stage(joined: int = 1) -> Stage:
    """Learns a curve; a batch of one process is `joined` batches of several."""
    torch.manual_seed(0)

    def batch(step: int) -> Batch:
        parts = [curve_batch(step * joined + i) for i in range(joined)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def loss(module: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        return {"square": (module(batch["x"]) - batch["y"]).square().mean(1)}

    def export(weights: dict[str, Tensor], folder: Path) -> None:
        torch.save(weights, folder / "weights.pt")

    module = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    return Stage(
        name="curve", module=module, batch=batch, loss=loss, export=export, steps=STEPS, lr=0.05, warmup=2
    )


def cut_stage() -> Stage:
    """The curve, of which one of two processes is asked to stop after seven steps."""
    whole = curve_stage()

    def batch(number: int) -> Batch:
        if number == 2 * 7:
            os.kill(os.getpid(), signal.SIGINT)
        return whole.batch(number)

    return replace(whole, batch=batch)


def captions_of(preset: Preset) -> CaptionEncoder:
    """The preset's caption encoder."""
    return CaptionEncoder.load(
        weights_folder(preset) / "caption.safetensors", CaptionConfig(**preset.caption)
    )


def talking_stage(preset: Preset) -> Stage:
    """The joint model of a preset on two drawn speakers, every task."""
    codec = load_picture_codec(preset)
    clips = []
    for index in range(2):
        clip = sample_clip(5, index, lengths=(33,), sizes=((64, 64),))
        tensors = {**cache.sound_arrays(clip), **cache.picture_arrays(clip, codec)}
        clips.append(cache.CachedClip(tensors, cache.texts_of(clip)))
    torch.manual_seed(0)
    model = UniAVGen(UniAVGenConfig(**preset.model))
    how = joint.JointTraining(steps=STEPS, batch_size=2, bf16=False)
    return joint.joint_stage(model, joint.ClipBank(clips, captions_of(preset)), how)


def main(folder: Path, preset: Preset) -> None:
    with processes.joined():
        number = processes.rank()
        assert not run(cut_stage(), folder / "cut") and run(curve_stage(), folder / "cut")
        for name, stage in (("curve", curve_stage()), ("talking", talking_stage(preset))):
            assert run(stage, folder / name)
            torch.save(stage.module.state_dict(), folder / f"{name}-{number}.pt")
            tasks = [stage.batch(step * 2 + number).get("task", "") for step in range(STEPS)]
            (folder / f"{name}-{number}.txt").write_text("\n".join(map(str, tasks)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), load_preset(sys.argv[2]))
