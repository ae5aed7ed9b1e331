"""Does nano do what it says: lips that follow the sound, clear speech, codecs that lose little.

Every clip is drawn and spoken anew from a seed that no training uses, and each figure stands beside its
control (another clip's sound, another clip's text) and its ceiling (the instrument on the drawn truth).

    python benchmarks/nano_bars.py --weights weights/nano --clips 50 --out outputs/nano_bars/report.json
"""

import argparse
import json
import logging
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import soundfile
import torch

from uniavgen_cli import __version__
from uniavgen_cli.codecs.mel import log_mel, normalize, peak_normalize
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
from uniavgen_cli.codecs.vocoder import Vocoder, VocoderConfig
from uniavgen_cli.config import Preset, load_preset, weights_folder
from uniavgen_cli.data.avatar import Rendered
from uniavgen_cli.data.dataset import FPS, LENGTHS, SpeakingClip, sample_clip
from uniavgen_cli.data.voice import TimedPhoneme, mouth_track, retime, time_phonemes
from uniavgen_cli.engine.engine import Engine
from uniavgen_cli.engine.request import LEAD_S, TAIL_S
from uniavgen_cli.evaluation.opening import OpeningReader, load_opening_reader
from uniavgen_cli.evaluation.recogniser import Recogniser, edit_distance, load_recogniser, said
from uniavgen_cli.evaluation.synchrony import best_lag, correlation
from uniavgen_cli.runtime import Runtime, choose

logger = logging.getLogger("nano_bars")

PARTS = ("codecs", "animate", "generate")
SEED = 9001  # training uses 1, the instruments 7 million and some
Row = dict[str, Any]


@dataclass(frozen=True)
class Instruments:
    """What reads a clip: phonemes from its sound, the opening of the mouth from its pictures."""

    recogniser: Recogniser
    reader: OpeningReader


@dataclass(frozen=True)
class Metric:
    """One figure of the report.

    `key` names the values of the rows; their mean is taken, or for a share of errors the sum of `key` over
    the sum of `per`. `bar` is to be reached from above or below as `higher` says; None: reported only.
    """

    name: str
    key: str
    unit: str
    higher: bool
    bar: float | None = None
    per: str = ""


METRICS = (
    Metric("codecs: picture", "vae_psnr", "dB", True, 30.0),
    Metric("codecs: mouth", "vae_mouth_psnr", "dB", True, 26.0),
    Metric("codecs: opening after the VAE", "vae_opening", "r", True),
    Metric("codecs: errors after the vocoder", "vocoder_errors", "share", False, per="true_phonemes"),
    Metric("codecs: errors the vocoder adds", "vocoder_added", "share", False, 0.02, per="true_phonemes"),
    Metric("truth: opening read from drawn frames", "reader_ceiling", "r", True),
    Metric("truth: read opening and planned one", "plan_ceiling", "r", True),
    Metric("truth: opening and another's speech", "truth_of_others", "r", False),
    Metric("truth: phoneme errors", "true_errors", "share", False, per="true_phonemes"),
    Metric("truth: errors by another's text", "true_errors_other", "share", True, per="other_phonemes"),
    Metric("animate: opening", "animate", "r", True, 0.5),
    Metric("animate: opening, by another's sound", "animate_other", "r", False, 0.1),
    Metric("animate: opening at its best lag", "animate_best", "r", True),
    Metric("animate: best lag", "animate_lag", "frames", False),
    Metric("animate: first frame", "animate_first_psnr", "dB", True, 20.0),
    Metric("generate: phoneme errors", "generate_errors", "share", False, 0.5, per="plan_phonemes"),
    Metric("generate: errors by another's text", "generate_other", "share", True, 0.9, per="other_phonemes"),
    Metric("generate: opening and planned one", "generate_opening", "r", True),
    Metric("generate: opening and another's plan", "generate_opening_other", "r", False),
    Metric("generate: seconds a clip", "generate_seconds", "s", False),
)


# ---- what is measured ------------------------------------------------------------------------------------


def psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pixels against the true ones, over all of them at once.

    dB, 0 (black for white) to 99 (the same); higher is better, and 30 looks alike.
    """
    error = float(np.mean((frames.astype(np.float32) - truth.astype(np.float32)) ** 2))
    return min(99.0, 10 * np.log10(255**2 / max(error, 1e-9)))


def mouth_psnr(frames: np.ndarray, truth: np.ndarray, boxes: np.ndarray) -> float:
    """The same within boxes (n, 4) of x0 y0 x1 y1 pixels, one a frame: dB, 0 to 99, higher is better."""
    height, width = truth.shape[1:3]
    pixels: list[tuple[np.ndarray, np.ndarray]] = []
    for made, true, box in zip(frames, truth, boxes, strict=True):
        x0, y0, x1, y1 = np.clip(np.round(box).astype(int), 0, (width, height, width, height))
        pixels.append((made[y0:y1, x0:x1].reshape(-1, 3), true[y0:y1, x0:x1].reshape(-1, 3)))
    return psnr(np.concatenate([made for made, _ in pixels]), np.concatenate([true for _, true in pixels]))


def measure_truth(
    clip: SpeakingClip, drawn: Rendered, other: SpeakingClip, instruments: Instruments, heard: Sequence[str]
) -> Row:
    """Ceilings and chance levels, on the drawn and spoken truth alone.

    Correlations -1 to 1: `reader_ceiling`, `plan_ceiling` are about the most that a model can reach,
    `truth_of_others` what unrelated clips share. Errors are counts: `true_errors` is the recogniser's floor,
    `true_errors_other` is chance.
    """
    read = instruments.reader.read(drawn.frames)
    plan = planned_opening(clip.phonemes, len(read))
    _, unrelated = unbroken_speech(other, len(clip.samples))
    return {
        "reader_ceiling": correlation(read, drawn.opening),
        "plan_ceiling": correlation(read, plan),
        "truth_of_others": correlation(planned_opening(unrelated, len(read)), plan),
        "true_errors": edit_distance(heard, said(clip.phonemes)),
        "true_phonemes": len(said(clip.phonemes)),
        "true_errors_other": edit_distance(heard, said(other.phonemes)),
        "other_phonemes": len(said(other.phonemes)),
    }


def planned_opening(phonemes: tuple[TimedPhoneme, ...], num_frames: int) -> np.ndarray:
    """How open phonemes want the mouth, (num_frames,) at the data's rate, 0 shut to 1."""
    return mouth_track(phonemes, num_frames, FPS)[:, 0]


def unbroken_speech(clip: SpeakingClip, num_samples: int) -> tuple[np.ndarray, tuple[TimedPhoneme, ...]]:
    """A clip's sentence and its reference one by turns, from the first sample to the last, and the phonemes.

    The control for another clip. The clip's own sound would not do: all clips are silent at both ends, which
    alone makes the openings of unrelated ones correlate at 0.16.
    """
    rate = clip.spec.sample_rate
    first, last = (round(time_s * rate) for time_s in (clip.phonemes[0].start_s, clip.phonemes[-1].end_s))
    sentence = clip.samples[first:last], retime(clip.phonemes, 0.0, (last - first) / rate)
    sounds: list[np.ndarray] = []
    timed: list[TimedPhoneme] = []
    spoken_s = 0.0
    for samples, phonemes in cycle((sentence, (clip.reference.samples, clip.reference.phonemes))):
        if spoken_s * rate >= num_samples:
            break
        sounds.append(samples)
        timed += retime(phonemes, spoken_s + phonemes[0].start_s, spoken_s + phonemes[-1].end_s)
        spoken_s += len(samples) / rate
    return np.concatenate(sounds)[:num_samples], tuple(timed)


@torch.inference_mode()
def measure_codecs(
    clip: SpeakingClip,
    drawn: Rendered,
    vae: VideoVAE,
    vocoder: Vocoder,
    runtime: Runtime,
    instruments: Instruments,
    heard: Sequence[str],
) -> Row:
    """A true clip through the codecs and back.

    Pictures in dB (higher is better) and the opening still read from them (-1 to 1, higher); errors heard
    after the vocoder, and how many more than before it (counts, lower is better).
    """
    device = runtime.device.value
    video = torch.from_numpy(drawn.frames).permute(3, 0, 1, 2)[None].float().to(device) / 127.5 - 1
    mels = normalize(log_mel(peak_normalize(torch.from_numpy(clip.samples)[None]))).to(device)
    with runtime.autocast():
        back = vae.decode(vae.encode(video))[0]
        sound = vocoder.decode(mels)[0].float().cpu().numpy()
    pixels = ((back.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    frames = pixels.permute(1, 2, 3, 0).cpu().numpy()  # c f h w -> f h w c
    meant = said(clip.phonemes)
    vocoder_errors = edit_distance(instruments.recogniser.hear(sound), meant)
    return {
        "vae_psnr": psnr(frames, drawn.frames),
        "vae_mouth_psnr": mouth_psnr(frames, drawn.frames, drawn.mouth_boxes),
        "vae_opening": correlation(instruments.reader.read(frames), drawn.opening),
        "vocoder_errors": vocoder_errors,
        "vocoder_added": vocoder_errors - edit_distance(heard, meant),
    }


def measure_animate(
    engine: Engine,
    clip: SpeakingClip,
    drawn: Rendered,
    other: SpeakingClip,
    instruments: Instruments,
    *,
    seed: int,
    prompt: str = "",
    sheet: Path | None = None,
) -> Row:
    """The first drawn frame animated by the clip's sound, and by another's, against the drawn opening.

    Correlations -1 to 1: `animate` higher is better, `animate_other` nearer 0. The size of the best lag in
    frames, lower is better. The first frame against the given one in dB, higher is better.
    """
    with tempfile.TemporaryDirectory() as folder:
        face, sound, wrong = (Path(folder, name) for name in ("face.png", "sound.wav", "other.wav"))
        rate = clip.spec.sample_rate
        _write_picture(face, drawn.frames[0])
        soundfile.write(sound, clip.samples, rate, subtype="FLOAT")
        soundfile.write(wrong, unbroken_speech(other, len(clip.samples))[0], rate, subtype="FLOAT")
        made = engine.animate(face, sound, prompt=prompt, seed=seed)
        controls = engine.animate(face, wrong, prompt=prompt, seed=seed).frames
        if sheet is not None:
            made.save(sheet.with_suffix(".mp4"), overwrite=True)
    read = instruments.reader.read(made.frames)
    lag, best = best_lag(read, drawn.opening)
    if sheet is not None:
        write_sheet(sheet, drawn.frames, made.frames, drawn.opening, read)
    return {
        "animate": correlation(read, drawn.opening),
        "animate_other": correlation(instruments.reader.read(controls), drawn.opening),
        "animate_best": best,
        "animate_lag": abs(lag),
        "animate_first_psnr": psnr(made.frames[0], drawn.frames[0]),
        "animate_seconds": sum(made.timings.values()),
    }


def measure_generate(
    engine: Engine,
    clip: SpeakingClip,
    drawn: Rendered,
    other: SpeakingClip,
    instruments: Instruments,
    *,
    seed: int,
    sheet: Path | None = None,
) -> Row:
    """A clip made of the caption and the text alone: what is heard in it, and whether the lips say it too.

    Errors are counts (lower is better; against another's text higher). Correlations -1 to 1 of the opening
    read from the pictures with that which the planned phonemes want (higher; another's plan nearer 0).
    """
    made = engine.generate(clip.caption.text, speech=clip.text, seed=seed)
    heard = instruments.recogniser.hear(made.samples)
    meant = said(made.plan.phonemes)
    read = instruments.reader.read(made.frames)
    plan = planned_opening(made.plan.phonemes, len(read))
    _, unrelated = unbroken_speech(other, len(made.samples))
    if sheet is not None:
        made.save(sheet.with_suffix(".mp4"), overwrite=True)
        write_sheet(sheet, drawn.frames, made.frames, plan * 0.2, read)
        _write_picture(sheet.with_name(sheet.stem + "-sound.png"), mel_picture([clip.samples, made.samples]))
    return {
        "generate_errors": edit_distance(heard, meant),
        "plan_phonemes": len(meant),
        "generate_other": edit_distance(heard, said(other.phonemes)),
        "other_phonemes": len(said(other.phonemes)),
        "generate_opening": correlation(read, plan),
        "generate_opening_other": correlation(read, planned_opening(unrelated, len(read))),
        "generate_seconds": sum(made.timings.values()),
        "said": " ".join(meant),
        "heard": " ".join(heard),
    }


def unseen_clips(preset: Preset, seed: int) -> Iterator[SpeakingClip]:
    """Drawn clips at the preset's size whose text, at the pace of generated speech, fits one of its clips."""
    side, most = preset.clip.short_side, preset.clip.max_frames
    lengths = [length for length in LENGTHS if length <= most]
    for index in count():
        clip = sample_clip(seed, index, lengths=lengths, sizes=[(side, side)])
        if LEAD_S + time_phonemes(clip.text)[-1].end_s + TAIL_S <= most / preset.clip.fps:
            yield clip


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every metric that the rows hold: its value, its standard error, its bar and whether it is met."""
    found = []
    for metric in METRICS:
        held = [row for row in rows if metric.key in row]
        if not held:
            continue
        values = np.array([row[metric.key] for row in held], float)
        weights = np.array([row[metric.per] if metric.per else 1 for row in held], float)
        value = float(values.sum() / max(weights.sum(), 1))
        # of a ratio of sums, by the spread of what each row adds to it
        spread = float(np.sqrt(((values - value * weights) ** 2).sum()) / max(weights.sum(), 1))
        met = None
        if metric.bar is not None:
            met = value >= metric.bar if metric.higher else value <= metric.bar
        found.append({**asdict(metric), "value": value, "error": spread, "clips": len(held), "met": met})
    return found


# ---- what can be looked at -------------------------------------------------------------------------------

_CURVE_HEIGHT = 96


def write_sheet(
    path: Path, truth: np.ndarray, made: np.ndarray, true_opening: np.ndarray, read_opening: np.ndarray
) -> None:
    """Every fourth frame, the truth above what was made, and under them both openings over all frames.

    Frames are (n, h, w, 3) uint8 of one size, in any number; the true opening is green, the read one red.
    """
    shown = max(len(truth), len(made))
    strips = [np.concatenate(list(_lengthened(frames, shown)[::4]), axis=1) for frames in (truth, made)]
    width = strips[0].shape[1]
    panel = np.full((_CURVE_HEIGHT, width, 3), 255, np.uint8)
    for curve, colour in ((true_opening, (0, 150, 60)), (read_opening, (210, 30, 30))):
        # frame i of the strips is i / 4 pictures from the left
        x = (np.arange(len(curve)) + 0.5) / 4 * truth.shape[2]
        y = _CURVE_HEIGHT - 4 - np.clip(curve, 0, 0.22) / 0.22 * (_CURVE_HEIGHT - 8)
        points = np.round(np.stack([x, y], -1)).astype(np.int32)
        cv2.polylines(panel, [points], False, colour, 2, cv2.LINE_AA)
    _write_picture(path, np.concatenate([*strips, panel]))


def mel_picture(sounds: Sequence[np.ndarray], pixels: int = 3) -> np.ndarray:
    """The log-mels of 24 kHz sounds one above the other, low tones at the bottom, (h, w, 3) uint8 RGB."""
    mels = [normalize(log_mel(peak_normalize(torch.from_numpy(sound)[None])))[0].numpy() for sound in sounds]
    longest = max(len(mel) for mel in mels)
    pictures = []
    for mel in mels:
        grey = np.clip((mel.T[::-1] + 3) / 6 * 255, 0, 255).astype(np.uint8)  # normalised: about -3 to 3
        grey = np.pad(grey, ((0, 4), (0, longest - len(mel))))
        pictures.append(cv2.applyColorMap(grey.repeat(pixels, 0).repeat(pixels, 1), cv2.COLORMAP_VIRIDIS))
    return np.concatenate(pictures)[:, :, ::-1]


def _lengthened(frames: np.ndarray, length: int) -> np.ndarray:
    white = np.full((length - len(frames), *frames.shape[1:]), 255, np.uint8)
    return np.concatenate([frames, white])


def _write_picture(path: Path, picture: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


# ---- the run ---------------------------------------------------------------------------------------------


def measure(
    preset: Preset,
    instruments: Instruments,
    options: argparse.Namespace,
    keep: Callable[[list[Row]], None],
) -> list[Row]:
    """The rows of all clips; `keep` gets those so far after each, so that a run cut short is not lost."""
    engine: Engine | None = None
    if set(options.parts) - {"codecs"}:
        engine = Engine.from_preset(preset)
        runtime, vae, vocoder = engine.runtime, engine.video_vae, engine.vocoder
    else:  # these can be measured before there is a joint model
        folder = weights_folder(preset)
        runtime = choose(preset.runtime.device, preset.runtime.dtype, preset.runtime.attention)
        vae_config, vocoder_config = VideoVAEConfig(**preset.video_vae), VocoderConfig(**preset.vocoder)
        vae = VideoVAE.load(folder / "video_vae.safetensors", vae_config).to(runtime.device.value)
        vocoder = Vocoder.load(folder / "vocoder.safetensors", vocoder_config).to(runtime.device.value)
    clips = list(islice(unseen_clips(preset, options.seed), options.clips))
    rows: list[Row] = []
    for index, clip in enumerate(clips):
        started = time.perf_counter()
        drawn, other = clip.draw(), clips[(index + 1) % len(clips)]
        heard = instruments.recogniser.hear(clip.samples)
        row: Row = {"index": index, "text": clip.text, "caption": clip.caption.text, "emotion": clip.emotion}
        row |= measure_truth(clip, drawn, other, instruments, heard)
        if "codecs" in options.parts:
            row |= measure_codecs(clip, drawn, vae, vocoder, runtime, instruments, heard)
        for part in ("animate", "generate"):
            if engine is None or part not in options.parts:
                continue
            sheet = options.out.with_name(f"{part}-{index:03}.png") if index < options.sheets else None
            if part == "animate":
                prompt = clip.caption.text if options.caption else ""
                row |= measure_animate(
                    engine, clip, drawn, other, instruments, seed=index, prompt=prompt, sheet=sheet
                )
            else:
                row |= measure_generate(engine, clip, drawn, other, instruments, seed=index, sheet=sheet)
        rows.append(row)
        keep(rows)
        logger.info("clip %d of %d, %.1f s", index + 1, len(clips), time.perf_counter() - started)
    return rows


def table(found: Sequence[dict[str, Any]]) -> str:
    """The summary in columns: what, the value and its standard error, the bar, and whether it is met."""
    lines = []
    for metric in found:
        bar = "" if metric["bar"] is None else f"{'>=' if metric['higher'] else '<='} {metric['bar']:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[metric["met"]]
        value = f"{metric['value']:8.3f} +-{metric['error']:.3f}"
        lines.append(f"{metric['name']:40} {value:17} {metric['unit']:7} {bar:8} {verdict}".rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the report and the pictures beside it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="folder of the weights (default: those of the preset)")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--clips", type=int, default=50, help="at least 2")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the preset's)")
    parser.add_argument("--seed", type=int, default=SEED, help="of the clips drawn; far from training's 1")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--caption", action="store_true", help="give animate the clip's caption too")
    parser.add_argument("--sheets", type=int, default=8, help="clips of which sheets and MP4s are written")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in the commands")
    parser.add_argument("--cache", type=Path, default=Path("outputs/instruments"))
    parser.add_argument("--recogniser", type=Path, help="its weights (default: made once, in the cache)")
    parser.add_argument("--reader", type=Path, help="the opening reader's weights (default: likewise)")
    parser.add_argument("--out", type=Path, default=Path("outputs/nano_bars/report.json"))
    options = parser.parse_args(arguments)
    if options.clips < 2:
        parser.error("--clips must be at least 2: each clip is the control of another")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    overrides = list(options.set)
    if options.weights is not None:
        nested = options.weights / options.preset
        overrides.append(f"weights={nested if nested.is_dir() else options.weights}")
    if options.steps is not None:
        overrides.append(f"sampling.steps={options.steps}")
    preset = load_preset(options.preset, overrides)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    logger.info("instruments; those not in %s are trained first, in some minutes", options.cache)
    instruments = Instruments(
        load_recogniser(options.recogniser or options.cache / "recogniser.safetensors"),
        load_opening_reader(options.reader or options.cache / "opening.safetensors"),
    )
    started = time.perf_counter()

    def keep(rows: list[Row]) -> None:
        report = {
            "uniavgen": __version__,
            "preset": preset.model_dump(),
            "clips": len(rows),
            "seed": options.seed,
            "caption_in_animate": options.caption,
            "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "seconds": round(time.perf_counter() - started, 1),
            "metrics": summary(rows),
            "rows": rows,
        }
        options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")

    rows = measure(preset, instruments, options, keep)
    print(table(summary(rows)))
    print(f"report: {options.out}")


if __name__ == "__main__":
    main()
