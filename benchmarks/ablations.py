"""What each part of the method brings at nano's size: guidance, interaction, face-aware mask.

    python benchmarks/ablations.py guidance --clips 8
    python benchmarks/ablations.py trained --seeds 3
    python benchmarks/ablations.py tables

`guidance` makes clips with the preset's own weights. `trained` teaches small models the same data for equal
steps, three seeds each, by other rules of interaction (`interactions.py`) and other lessons for the mask.
Both write one line of JSON a run and leave out what is there, so a run that was cut goes on; `tables` makes
Markdown and SVG of whatever is there. After tables 2, 3 and 9 of UniAVGen (arXiv 2511.03334).
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import ablation_tables  # noqa: E402
from ablation_clips import InOrder, drawn_clips, pixels_of  # noqa: E402
from interactions import interacting  # noqa: E402

from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder  # noqa: E402
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig  # noqa: E402
from uniavgen_cli.config import Preset, load_preset, weights_files  # noqa: E402
from uniavgen_cli.data.dataset import FPS, sample_clip  # noqa: E402
from uniavgen_cli.data.voice import mouth_track, time_phonemes  # noqa: E402
from uniavgen_cli.diffusion.sampler import State  # noqa: E402
from uniavgen_cli.engine.engine import Engine  # noqa: E402
from uniavgen_cli.engine.request import Request, check  # noqa: E402
from uniavgen_cli.evaluation.instruments import find, probes_folder  # noqa: E402
from uniavgen_cli.evaluation.mask import mask_iou  # noqa: E402
from uniavgen_cli.evaluation.opening import OpeningReader, load_opening_reader  # noqa: E402
from uniavgen_cli.evaluation.recogniser import edit_distance, load_recogniser, said  # noqa: E402
from uniavgen_cli.evaluation.synchrony import correlation, heard_opening  # noqa: E402
from uniavgen_cli.models.uniavgen import JointOutput, UniAVGen, UniAVGenConfig  # noqa: E402
from uniavgen_cli.training.joint_stage import (  # noqa: E402
    ClipBank,
    JointTraining,
    joint_forward,
    joint_stage,
)
from uniavgen_cli.training.trainer import Batch  # noqa: E402
from uniavgen_cli.training.vae_stage import latent_importance  # noqa: E402

logger = logging.getLogger("ablations")

Row = dict[str, Any]
DATA_SEED, UNSEEN_SEED = 6_000_011, 9001  # of the clips that are learnt from, and that figures are made of
# Share of the steps with both unconditional branches alone, and the steps that are guided at all.
GUIDANCES: dict[str, tuple[float, tuple[float, float]]] = {
    "plain": (0.0, (0.0, 1.0)),
    "modality-aware": (1.0, (0.0, 1.0)),
    "modality-aware, then plain": (0.5, (0.0, 1.0)),  # what the released model does
    "modality-aware in an interval": (1.0, (0.0, 0.5)),
}
# The task in which a direction does all the work: the other stream is given.
DIRECTIONS = {"v2a": "dub", "a2v": "animate"}
# A direction, the rule by which it reads, and the lesson of the mask; the method's own is the third.
ARMS: tuple[tuple[str, str, str], ...] = tuple(
    (direction, rule, mask)
    for direction in DIRECTIONS
    for rule, mask in (
        ("global", "decaying"),
        ("symmetric", "decaying"),
        ("asymmetric", "decaying"),
        ("asymmetric", "none"),
        ("asymmetric", "unsupervised"),
        ("asymmetric", "fixed"),
    )
)
SIDE = 64  # pixels of the pictures from which is learnt: faces are small, and as many cells tell them
SMALL = {  # of the model that is taught; the rest is as the preset says
    "video_dim": 64, "video_heads": 2, "video_ffn_dim": 128, "audio_dim": 64, "audio_heads": 2,
    "audio_ffn_dim": 128, "num_blocks": 2, "interaction_blocks": [0, 1], "speech_text_dim": 32,
    "speech_conv_blocks": 1, "patch": [1, 1, 1],
}  # fmt: skip
LATE = 0.95  # of the time at which a stream is asked for: nearly all noise, so that the other tells all
# Nobody is told the words: what a stream knows of speech it has from the other. Most is learnt near LATE.
LESSON: dict[str, Any] = {"dropped": 1.0, "carried": 0.0, "shift": 20.0}
MOUTH = 10.0  # times as much as in nano's own lessons the mouth weighs


class Journal:
    """Rows of a JSON-lines file, and which runs they are of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = ablation_tables.read(path)

    def missing(self, **run: Any) -> bool:
        return not any(all(row.get(key) == value for key, value in run.items()) for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        beside.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        beside.replace(self.path)


# ---- guidance: no training -------------------------------------------------------------------------------


def settings(scales: Sequence[float]) -> Iterator[tuple[str, float, list[str]]]:
    """Each way of guiding with its scale, and the preset's keys that make it so."""
    yield "none", 1.0, ["sampling.video_guidance=1", "sampling.audio_guidance=1"]
    for kind, (fraction, (start, end)) in GUIDANCES.items():
        for scale in scales:
            keys = {
                "video_guidance": scale,
                "audio_guidance": scale,
                "modality_guidance_fraction": fraction,
                "guidance_from": start,
                "guidance_to": end,
            }
            yield kind, scale, [f"sampling.{key}={value}" for key, value in keys.items()]


def measure_guidance(options: argparse.Namespace) -> None:
    """Every setting on the same unseen clips from the same noise, a row for each setting and clip."""
    journal = Journal(options.out / "guidance.jsonl")
    base = list(options.set) + ([f"sampling.steps={options.steps}"] if options.steps else [])
    preset = load_preset(options.preset, base)
    engine = Engine.from_preset(preset)
    reader, recogniser = load_opening_reader(options.reader), load_recogniser(options.recogniser)
    longest = preset.clip.max_frames / preset.clip.fps
    side = preset.clip.short_side
    length = min(49, preset.clip.max_frames)
    settings_of = {"weights": engine.weights_hash[:12], "steps": preset.sampling.steps, "seed": options.seed}
    drawn = (sample_clip(options.seed, i, lengths=(length,), sizes=((side, side),)) for i in range(10**6))
    fitting = (clip for clip in drawn if time_phonemes(clip.text)[-1].end_s + 0.5 <= longest)
    clips = list(islice(fitting, options.clips))
    face, sound = options.out / "face.png", options.out / "sound.wav"
    for index, clip in enumerate(clips):
        truth, other = clip.draw(), clips[(index + 1) % len(clips)]
        options.out.mkdir(parents=True, exist_ok=True)
        write_png(face, truth.frames[0])
        soundfile.write(sound, clip.samples, clip.spec.sample_rate, subtype="FLOAT")
        # another sentence over the whole clip, as a control: silence at both ends alone makes openings alike
        unrelated = stretched_opening(other.text, len(truth.opening))
        for kind, scale, keys in settings(options.scales):
            run = {"kind": kind, "scale": scale, "clip": index, **settings_of}
            if not journal.missing(**run):
                continue
            started = time.perf_counter()
            guided_preset = load_preset(options.preset, [*base, *keys])
            animated = engine.run(
                check(Request(task="animate", face=face, sound=sound, seed=index), guided_preset)
            )
            request = Request(task="generate", prompt=clip.caption.text, speech=clip.text, seed=index)
            generated = engine.run(check(request, guided_preset))
            seen, lips = reader.read(animated.frames), reader.read(generated.frames)
            heard = heard_opening(generated.samples, len(lips), generated.fps, recogniser)
            meant = said(generated.plan.phonemes)
            journal.add(
                run
                | {
                    "animate": correlation(seen, truth.opening[: len(seen)]),
                    "animate_other": correlation(seen, unrelated[: len(seen)]),
                    "itself": correlation(lips, heard),
                    "itself_other": correlation(lips, stretched_opening(other.text, len(lips))),
                    "errors": edit_distance(recogniser.hear(generated.samples), meant) / len(meant),
                    "seconds": time.perf_counter() - started,
                    "threads": torch.get_num_threads(),
                }
            )
            logger.info("clip %d, %s %g: %s", index, kind, scale, journal.rows[-1])
    for path in (face, sound):
        path.unlink(missing_ok=True)


def stretched_opening(text: str, num_frames: int) -> np.ndarray:
    """How open the words of `text`, spoken from the first frame to the last, want a mouth: (num_frames,)."""
    timed = time_phonemes(text)
    share = num_frames / FPS / timed[-1].end_s
    timed = tuple(replace(p, start_s=p.start_s * share, end_s=p.end_s * share) for p in timed)
    return mouth_track(timed, num_frames, FPS)[:, 0]


def write_png(path: Path, picture: np.ndarray) -> None:
    import cv2

    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


# ---- interaction and mask: small models, equal steps -----------------------------------------------------


def train_arm(
    preset: Preset,
    arm: tuple[str, str, str],
    seed: int,
    bank: ClipBank,
    importance: Tensor,
    unseen: InOrder,
    options: argparse.Namespace,
) -> tuple[UniAVGen, float]:
    """One model by one rule, from the weights and on the batches that all arms of a seed share.

    With it the IoU of M and unseen faces when three quarters were done, and a decaying lesson not yet over.
    """
    direction, rule, mask = arm
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UniAVGen(UniAVGenConfig(**{**preset.model, **options.sizes}))
    rules = {"a2v": "asymmetric", "v2a": "asymmetric", direction: rule}
    interacting(model, **rules, masked=mask != "none").train()
    how = JointTraining(
        steps=steps_of(direction, options),
        batch_size=options.batch,
        lr=options.lr,
        seed=seed,
        mask_weight=0.0 if mask in ("none", "unsupervised") else 0.1,
        bf16=False,
        odds={DIRECTIONS[direction]: 1.0},
        **LESSON,
    )
    stage = joint_stage(model, bank, how, importance=importance)
    optimizer = torch.optim.AdamW(model.parameters(), lr=how.lr, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(how.steps):
        warm, left = min(1.0, (step + 1) / 50), 1 - step / how.steps
        for group in optimizer.param_groups:
            group["lr"] = how.lr * warm * min(1.0, left / 0.3)
        # the loss fades the mask's part out by the step, and at step 0 not at all
        losses = stage.loss(model, stage.batch(step), 0 if mask == "fixed" else step)
        optimizer.zero_grad(set_to_none=True)
        torch.stack([loss.mean() for loss in losses.values()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step == 3 * how.steps // 4:
            batch, made, _ = asked(model.eval(), direction, unseen)
            taught = overlap(made, batch)
            model.train()
        if step % 100 == 0:
            shown = {name: round(float(loss.detach().mean()), 3) for name, loss in losses.items()}
            logger.info("%s seed %d step %d %s", arm, seed, step, shown)
    return model.eval(), taught


@torch.inference_mode()
def followed(model: UniAVGen, direction: str, unseen: InOrder, codec: VideoVAE, reader: OpeningReader) -> Row:
    """What one stream takes from the other, on unseen clips, and where the mask is.

    The other is given whole, the one asked for in a step from nearly pure noise. Correlations over a clip's
    time, -1 to 1, higher is better: `follows` of what is read of the answer with the truth, for A2V the
    opening of the mouth in the decoded pixels, for V2A the mel's mean; `other` with the next clip's truth,
    which nothing but what all clips have in common makes high. `iou` of M and the face's box, 0 to 1.
    """
    batch, made, noises = asked(model, direction, unseen)
    if direction == "v2a":
        mel = batch["mel"]
        clean = torch.lerp(mel, noises.audio, LATE) - LATE * made.audio[:, -mel.shape[1] :].float()
        read, truths = clean.mean(-1).numpy(), mel.mean(-1).numpy()
    else:
        latents = batch["latents"]
        velocity = made.video[:, :, -latents.shape[2] :].float()
        clean = torch.lerp(latents, noises.video, LATE) - LATE * velocity
        clean[:, :, :1] = latents[:, :, :1]  # is given
        read = np.stack([reader.read(pixels_of(codec, one)) for one in clean])
        truths = unseen.groups[0].tensors["opening"].numpy()
    others = np.roll(truths, 1, axis=0)
    return {
        "follows": float(np.mean([correlation(*pair) for pair in zip(read, truths, strict=True)])),
        "other": float(np.mean([correlation(*pair) for pair in zip(read, others, strict=True)])),
        "iou": overlap(made, batch),
    }


@torch.inference_mode()
def asked(model: UniAVGen, direction: str, unseen: InOrder) -> tuple[Batch, JointOutput, State]:
    """All unseen clips at LATE with the other stream given: the batch, the answer, the noise."""
    (size,) = unseen.sizes
    how = JointTraining(steps=1, batch_size=size, odds={DIRECTIONS[direction]: 1.0}, **LESSON)
    batch = joint_stage(model, unseen, how).batch(0) | {"t": torch.full((size,), LATE)}
    return batch, *joint_forward(model, batch)


def overlap(made: JointOutput, batch: Batch) -> float:
    """The mean IoU of M above 0.5 with the face's box, 0 to 1."""
    return float(mask_iou(made.face_mask_logits.sigmoid(), batch["face_mask"][:, None]).mean())


def measure_trained(options: argparse.Namespace) -> None:
    """Every arm with every seed: a row each, written when it is done."""
    journal = Journal(options.out / "trained.jsonl")
    preset = load_preset(options.preset, options.set)
    files = weights_files(preset)
    codec = VideoVAE.load(files["video_vae"], VideoVAEConfig(**preset.video_vae))
    captions = CaptionEncoder.load(files["caption"], CaptionConfig(**preset.caption))
    importance = latent_importance(codec)
    patch = options.sizes.get("patch", preset.model["patch"])
    drawn = partial(drawn_clips, codec=codec, side=options.side, patch=patch)
    logger.info("drawing %d clips, where they are not there yet", options.clips + options.unseen)
    learnt = drawn(options.out / "learnt.safetensors", seed=DATA_SEED, count=options.clips)
    unseen = drawn(options.out / "unseen.safetensors", seed=UNSEEN_SEED, count=options.unseen)
    for clip in learnt:
        clip.tensors["mouth_mask"] = MOUTH * clip.tensors["mouth_mask"]
    bank, unseen_bank = ClipBank(learnt, captions), InOrder(unseen, captions)
    reader = load_opening_reader(options.reader)
    settings = {name: getattr(options, name) for name in ("batch", "lr", "sizes", "side", "clips", "unseen")}
    # seed by seed, so that a run that is cut leaves whole rows of every arm
    for seed in range(options.seeds):
        for arm in options.arms:
            run = dict(zip(("direction", "rule", "mask"), arm, strict=True)) | settings
            run |= {"seed": seed, "steps": steps_of(arm[0], options)}
            if not journal.missing(**run):
                continue
            started = time.process_time()
            model, taught = train_arm(preset, arm, seed, bank, importance, unseen_bank, options)
            row = run | {"seconds": time.process_time() - started, "iou_taught": taught}
            row |= followed(model, arm[0], unseen_bank, codec, reader)
            row |= {"parameters": sum(p.numel() for p in model.parameters())}
            journal.add(row)
            logger.info("%s", row)


def steps_of(direction: str, options: argparse.Namespace) -> int:
    """Of training; equal for all arms of a direction."""
    return int(options.v2a_steps if direction == "v2a" else options.a2v_steps)


def instrument(name: str) -> Path:
    """Where a probe is, or would be kept; as `uniavgen eval` has it."""
    folder = probes_folder()
    return find(folder).get(name, folder / f"{name}.safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part and write its rows; `tables` writes Markdown and SVG of all rows there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True)

    def part(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = parts.add_parser(name, help=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument("--out", type=Path, default=Path("outputs/ablations"))
        return sub

    for sub in (guidance := part("guidance", measure_guidance), trained := part("trained", measure_trained)):
        sub.add_argument("--preset", default="nano")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in the commands")
        sub.add_argument("--reader", type=Path, default=instrument("opening"), help="trained if not there")
    guidance.add_argument("--recogniser", type=Path, default=instrument("recogniser"), help="likewise")
    guidance.add_argument("--clips", type=int, default=8, help="at least 2")
    guidance.add_argument("--scales", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    guidance.add_argument("--steps", type=int, help="of sampling (default: the preset's)")
    guidance.add_argument("--seed", type=int, default=UNSEEN_SEED, help="of the clips drawn")
    trained.add_argument("--v2a-steps", type=int, default=150, help="of training, for every arm of V2A")
    trained.add_argument("--a2v-steps", type=int, default=600, help="likewise of A2V")
    trained.add_argument("--seeds", type=int, default=3)
    trained.add_argument("--clips", type=int, default=192, help="drawn to learn from")
    trained.add_argument("--unseen", type=int, default=32, help="drawn to measure on")
    trained.add_argument("--side", type=int, default=SIDE, help="of the pictures, in pixels")
    trained.add_argument("--batch", type=int, default=8)
    trained.add_argument("--lr", type=float, default=3e-3)
    trained.add_argument("--arms", type=int, nargs="+", help=f"some of 0 to {len(ARMS) - 1} (default: all)")
    trained.add_argument("--sizes", type=json.loads, default=SMALL, help="of the model, as JSON")
    tables = part("tables", ablation_tables.write)
    tables.add_argument("--page", type=Path, help="whose tables of what was trained are put in place")
    options = parser.parse_args(arguments)
    if "arms" in options:
        options.arms = [ARMS[number] for number in options.arms] if options.arms else list(ARMS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options.run(options)


if __name__ == "__main__":
    main()
