"""What each part of the method brings at nano's size: guidance, interaction, face-aware mask.

    python benchmarks/ablations.py guidance --clips 8
    python benchmarks/ablations.py trained --steps 600
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
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import ablation_tables  # noqa: E402
from interactions import interacting  # noqa: E402

from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder  # noqa: E402
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig  # noqa: E402
from uniavgen_cli.config import Preset, load_preset, weights_files  # noqa: E402
from uniavgen_cli.data import cache  # noqa: E402
from uniavgen_cli.data.dataset import FPS, sample_clip  # noqa: E402
from uniavgen_cli.data.voice import mouth_track, time_phonemes  # noqa: E402
from uniavgen_cli.diffusion.guidance import Guidance, Pass, guided  # noqa: E402
from uniavgen_cli.diffusion.sampler import Given, noise, sample  # noqa: E402
from uniavgen_cli.diffusion.schedule import timesteps  # noqa: E402
from uniavgen_cli.engine.engine import Engine  # noqa: E402
from uniavgen_cli.engine.request import Request, check  # noqa: E402
from uniavgen_cli.evaluation.mask import mask_iou  # noqa: E402
from uniavgen_cli.evaluation.opening import OpeningReader, load_opening_reader  # noqa: E402
from uniavgen_cli.evaluation.recogniser import edit_distance, load_recogniser, said  # noqa: E402
from uniavgen_cli.evaluation.synchrony import correlation, heard_opening  # noqa: E402
from uniavgen_cli.models.uniavgen import Conditions, UniAVGen, UniAVGenConfig  # noqa: E402
from uniavgen_cli.training.joint_stage import (  # noqa: E402
    EVEN_FROM,
    ClipBank,
    JointTraining,
    joint_forward,
    joint_stage,
)
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
# Rules of A2V, of V2A, and the lesson of the mask; the last is the method's own.
ARMS: tuple[tuple[str, str, str], ...] = (
    ("global", "global", "decaying"),
    ("symmetric", "symmetric", "decaying"),
    ("symmetric", "asymmetric", "decaying"),
    ("asymmetric", "symmetric", "decaying"),
    ("asymmetric", "asymmetric", "none"),
    ("asymmetric", "asymmetric", "unsupervised"),
    ("asymmetric", "asymmetric", "fixed"),
    ("asymmetric", "asymmetric", "decaying"),
)
SMALL = {  # of the model that is taught; the rest is as the preset says
    "video_dim": 96, "video_heads": 2, "video_ffn_dim": 256, "audio_dim": 96, "audio_heads": 2,
    "audio_ffn_dim": 256, "num_blocks": 4, "interaction_blocks": [0, 2], "speech_text_dim": 64,
}  # fmt: skip


class Journal:
    """Rows of a JSON-lines file, and which runs they are of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def missing(self, **run: Any) -> bool:
        return not any(all(row.get(key) == value for key, value in run.items()) for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


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
            if not journal.missing(kind=kind, scale=scale, clip=index):
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
                {
                    "kind": kind,
                    "scale": scale,
                    "clip": index,
                    "animate": correlation(seen, truth.opening[: len(seen)]),
                    "animate_other": correlation(seen, unrelated[: len(seen)]),
                    "itself": correlation(lips, heard),
                    "itself_other": correlation(lips, stretched_opening(other.text, len(lips))),
                    "errors": edit_distance(recogniser.hear(generated.samples), meant) / len(meant),
                    "seconds": time.perf_counter() - started,
                    "steps": preset.sampling.steps,
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


def drawn_clips(path: Path, codec: VideoVAE, seed: int, count: int, side: int) -> list[cache.CachedClip]:
    """Drawn clips of 33 frames as the model sees them, kept in the file `path`."""
    if not path.exists():
        tensors, texts = {}, {}
        for index in range(count):
            clip = sample_clip(seed, index, lengths=(33,), sizes=((side, side),))
            arrays = {**cache.sound_arrays(clip), **cache.picture_arrays(clip, codec)}
            tensors.update({f"{index}/{name}": value.contiguous() for name, value in arrays.items()})
            texts[str(index)] = {
                "text": clip.text, "reference_text": clip.reference_text, "caption": clip.caption.text,
            }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
        path.with_suffix(".json").write_text(json.dumps(texts), encoding="utf-8")
    texts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    clips = [cache.CachedClip({}, texts[str(index)]) for index in range(len(texts))]
    for key, value in load_file(path).items():
        index, name = key.split("/")
        clips[int(index)].tensors[name] = value
    return clips[:count]


def train_arm(
    preset: Preset,
    arm: tuple[str, str, str],
    seed: int,
    bank: ClipBank,
    importance: Tensor,
    options: argparse.Namespace,
) -> UniAVGen:
    """One model by one rule, from the weights and on the batches that all arms of a seed share."""
    a2v, v2a, mask = arm
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UniAVGen(UniAVGenConfig(**{**preset.model, **options.sizes}))
    interacting(model, a2v, v2a, masked=mask != "none").train()
    how = JointTraining(
        steps=options.steps,
        batch_size=options.batch,
        lr=options.lr,
        seed=seed,
        mask_weight=0.0 if mask in ("none", "unsupervised") else 0.1,
        no_picture=0.0,
        bf16=False,
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
        if step % 100 == 0:
            shown = {name: round(float(loss.detach().mean()), 3) for name, loss in losses.items()}
            logger.info("%s seed %d step %d %s", arm, seed, step, shown)
    return model.eval()


@torch.inference_mode()
def gains(model: UniAVGen, bank: ClipBank, importance: Tensor, batches: int) -> Row:
    """What each stream takes from the other, on unseen clips, and where the mask is.

    `a2v_gain`: by how much the error of the mouth's velocity is less with the clip's own sound than with
    another's, as a share of the latter; `v2a_gain`: the same of the mel's with its own picture. Above 0 the
    other stream is understood, 0 it is not; higher is better. `iou` of M and the face's box, 0 to 1. `video`
    and `audio` are the errors with the right other stream, lower is better.
    """
    sums = dict.fromkeys(("mouth", "mouth_other", "mel", "mel_other"), 0.0)
    ious = []
    for number in range(batches):
        for task, given in (("animate", "mel"), ("dub", "latents")):
            how = JointTraining(
                steps=1, batch_size=4, seed=number, odds={task: 1.0}, dropped=1.0, no_picture=0.0
            )
            batch = joint_stage(model, bank, how).batch(number)
            for wrong in (False, True):
                turned = {**batch, given: batch[given].roll(1, 0)} if wrong else batch
                if wrong and task == "dub":
                    turned["reference_frame"] = batch["reference_frame"].roll(1, 0)
                made, noises = joint_forward(model, turned)
                if task == "animate":
                    latents, first = batch["latents"], batch["given_video"]
                    target = noises.video - latents
                    # as the loss has it: small times would be all of the error of a clean picture
                    share = (batch["t"] / batch["t"].clamp(min=EVEN_FROM)).view(-1, 1, 1, 1, 1)
                    error = (share * (made.video[:, :, -latents.shape[2] :].float() - target)).square()
                    error = (error * importance.view(-1, 1, 1, 1)).mean(1)[:, first:]
                    mouth = batch["mouth_mask"][:, first:]
                    sums["mouth_other" if wrong else "mouth"] += float((error * mouth).sum() / mouth.sum())
                    if not wrong:
                        masks = made.face_mask_logits.sigmoid()
                        ious.append(float(mask_iou(masks, batch["face_mask"][:, None]).mean()))
                else:
                    mel = batch["mel"]
                    error = made.audio[:, -mel.shape[1] :].float() - (noises.audio - mel)
                    sums["mel_other" if wrong else "mel"] += float(error.square().mean())
    return {
        "a2v_gain": 1 - sums["mouth"] / sums["mouth_other"],
        "v2a_gain": 1 - sums["mel"] / sums["mel_other"],
        "video": sums["mouth"] / batches,
        "audio": sums["mel"] / batches,
        "iou": float(np.mean(ious)),
    }


@torch.inference_mode()
def sampled_opening(
    model: UniAVGen,
    clips: Sequence[cache.CachedClip],
    captions: Tensor,
    codec: VideoVAE,
    reader: OpeningReader,
) -> Row:
    """Clips animated from their first frame and sound, and the opening read from the decoded pixels.

    Correlations with the drawn opening, -1 to 1: `opening` higher is better, `opening_other` (with the next
    clip's) nearer 0.
    """
    read = []
    for index, clip in enumerate(clips):
        latents = clip.tensors["latents"].float().transpose(0, 1)[None]
        mel = clip.tensors["mel"].float()[None]
        given = Given(reference_frame=latents[:, :, :1], video=latents[:, :, :1], audio=mel)
        silent = Conditions(
            caption=captions[index : index + 1],
            speech=torch.full((1, 10), -1),
            speech_lengths=(10,),
            phonemes=torch.zeros(mel.shape[:2], dtype=torch.int64),
        )
        one = Pass(conditions=silent, v2a=False)
        times = timesteps(10, 5.0)
        denoise = guided(model, Guidance(), times, given, one, one, batched=False)
        state = given.put_back(sample(noise(latents.shape, mel.shape, index), times, denoise))
        pixels = ((codec.decode(state.video)[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        read.append(reader.read(pixels.permute(1, 2, 3, 0).numpy()))
    truths = [clip.tensors["opening"].numpy() for clip in clips]
    others = truths[1:] + truths[:1]
    return {
        "opening": float(np.mean([correlation(*pair) for pair in zip(read, truths, strict=True)])),
        "opening_other": float(np.mean([correlation(*pair) for pair in zip(read, others, strict=True)])),
    }


def measure_trained(options: argparse.Namespace) -> None:
    """Every arm with every seed: a row each, written when it is done."""
    journal = Journal(options.out / "trained.jsonl")
    preset = load_preset(options.preset, options.set)
    files = weights_files(preset)
    codec = VideoVAE.load(files["video_vae"], VideoVAEConfig(**preset.video_vae))
    captions = CaptionEncoder.load(files["caption"], CaptionConfig(**preset.caption))
    importance, side = latent_importance(codec), preset.clip.short_side
    logger.info("drawing %d clips, where they are not there yet", options.clips + options.unseen)
    learnt = drawn_clips(options.out / "learnt.safetensors", codec, DATA_SEED, options.clips, side)
    unseen = drawn_clips(options.out / "unseen.safetensors", codec, UNSEEN_SEED, options.unseen, side)
    bank, unseen_bank = ClipBank(learnt, captions), ClipBank(unseen, captions)
    few = unseen[: options.sampled]
    reader = load_opening_reader(options.reader) if few else None
    with torch.inference_mode():
        told = captions.encode([clip.texts["caption"] for clip in few]) if few else torch.empty(0)
    for seed in range(options.seeds):
        for arm in options.arms:
            run = dict(zip(("a2v", "v2a", "mask"), arm, strict=True)) | {"seed": seed, "steps": options.steps}
            if not journal.missing(**run):
                continue
            started = time.perf_counter()
            model = train_arm(preset, arm, seed, bank, importance, options)
            row = run | {
                "seconds": time.perf_counter() - started,
                "clips": len(learnt),
                "unseen": len(unseen),
            }
            row |= gains(model, unseen_bank, importance, options.batches)
            if reader is not None:
                row |= sampled_opening(model, few, told, codec, reader)
            row |= {"parameters": sum(p.numel() for p in model.parameters()), "batch": options.batch}
            journal.add(row)
            logger.info("%s", row)


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
        sub.add_argument("--reader", type=Path, default=Path("outputs/instruments/opening.safetensors"))
    guidance.add_argument(
        "--recogniser", type=Path, default=Path("outputs/instruments/recogniser.safetensors")
    )
    guidance.add_argument("--clips", type=int, default=8, help="at least 2")
    guidance.add_argument("--scales", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    guidance.add_argument("--steps", type=int, help="of sampling (default: the preset's)")
    guidance.add_argument("--seed", type=int, default=UNSEEN_SEED, help="of the clips drawn")
    trained.add_argument("--steps", type=int, default=600, help="of training, for every arm")
    trained.add_argument("--seeds", type=int, default=3)
    trained.add_argument("--clips", type=int, default=256, help="drawn to learn from")
    trained.add_argument("--unseen", type=int, default=32, help="drawn to measure on")
    trained.add_argument("--batches", type=int, default=16, help="of 4 unseen clips, for each figure")
    trained.add_argument("--sampled", type=int, default=8, help="unseen clips that are animated; 0: none")
    trained.add_argument("--batch", type=int, default=4)
    trained.add_argument("--lr", type=float, default=1e-3)
    trained.add_argument("--arms", type=int, nargs="+", help=f"some of 0 to {len(ARMS) - 1} (default: all)")
    trained.add_argument("--sizes", type=json.loads, default=SMALL, help="of the model, as JSON")
    part("tables", ablation_tables.write)
    options = parser.parse_args(arguments)
    if "arms" in options:
        options.arms = [ARMS[number] for number in options.arms] if options.arms else list(ARMS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options.run(options)


if __name__ == "__main__":
    main()
