"""How far long clips wander: every window of some, and the last against the first.

    python benchmarks/drift.py --clips 10 --seconds 60 --probes DIR
    python benchmarks/drift.py --task animate --clips 10 --probes DIR

Drawn people who are in no training set say sentences from the first second to the last; `generate` makes
them from a caption and the text, `animate` from a picture and a sound. Of each window, with what it keeps
of the one before: loudness, mean colour, how well the mouth goes with what is said (with the plan, and with
what is heard), errors in what is said, and how like the person and the voice are to the first half of the
first window (of `animate` to the given picture). A line of JSON a clip goes to --out, and clips that are
there are not made again; a table of last against first is printed, with means and standard errors over
clips.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from uniavgen_cli.config import load_preset  # noqa: E402
from uniavgen_cli.data.captions import emotion_named  # noqa: E402
from uniavgen_cli.data.dataset import SpeakingClip, sample_clip  # noqa: E402
from uniavgen_cli.data.voice import TimedPhoneme, mouth_track, sample_sentence, speak  # noqa: E402
from uniavgen_cli.engine.drift import loudness, mean_colour  # noqa: E402
from uniavgen_cli.engine.engine import Clip, Engine  # noqa: E402
from uniavgen_cli.engine.request import TAIL_S, Request, check  # noqa: E402
from uniavgen_cli.engine.speech import time_text  # noqa: E402
from uniavgen_cli.evaluation.identity import identity_likeness  # noqa: E402
from uniavgen_cli.evaluation.instruments import Instruments, load_instruments  # noqa: E402
from uniavgen_cli.evaluation.recogniser import edit_distance, said  # noqa: E402
from uniavgen_cli.evaluation.synchrony import correlation, heard_opening  # noqa: E402
from uniavgen_cli.evaluation.voice import voice_likeness  # noqa: E402

logger = logging.getLogger("drift")

Row = dict[str, Any]
UNSEEN_SEED = 8_100_017  # of people and sentences, apart from those of training and of the probes
PAUSE_S = 0.35  # between sentences of the given sound
# figure -> what it is, and by how much the last window may differ from the first
FIGURES = {
    "loudness_lufs": ("loudness, LUFS", "1.5"),
    "colour": ("mean colour, delta E from the first", "2"),
    "synchrony": ("mouth with the plan, r", "0.1"),
    "synchrony_heard": ("mouth with the sound, r", "0.1"),
    "identity": ("the person's likeness", "5 %"),
    "voice": ("the voice's likeness", ""),
    "errors": ("phoneme errors", ""),
}


def sentences(index: int, fits: Callable[[str], bool]) -> str:
    """As many sentences as fit, of clip `index`."""
    rng = np.random.default_rng([UNSEEN_SEED, index, 1])
    text, tried = "", 0
    while tried < 30:  # a shorter one may still fit
        longer = f"{text} {sample_sentence(rng)}".strip()
        text, tried = (longer, 0) if fits(longer) else (text, tried + 1)
    return text


def spoken_sound(
    clip: SpeakingClip, index: int, seconds: float
) -> tuple[np.ndarray, tuple[TimedPhoneme, ...]]:
    """Sentences of the clip's voice one after another for `seconds`: samples (n,) and what is said when."""
    rng, rate = np.random.default_rng([UNSEEN_SEED, index, 1]), clip.spec.sample_rate
    sounds: list[np.ndarray] = []
    timed: list[TimedPhoneme] = []
    count = 0
    while count < seconds * rate:
        spoken = speak(sample_sentence(rng), clip.voice, clip.emotion)
        begin_s = count / rate
        timed += [replace(p, start_s=p.start_s + begin_s, end_s=p.end_s + begin_s) for p in spoken.phonemes]
        sounds += [spoken.samples, np.zeros(round(PAUSE_S * rate), np.float32)]
        count += sum(map(len, sounds[-2:]))
    return np.concatenate(sounds)[: round(seconds * rate)], tuple(timed)


def made(engine: Engine, options: argparse.Namespace, index: int, folder: Path) -> tuple[Clip, Row]:
    """Clip `index`, and what its windows are measured against: sound, phonemes, pictures of the person."""
    side = engine.preset.clip.short_side
    person = sample_clip(UNSEEN_SEED, index, lengths=(81,), sizes=((side, side),))
    fields: dict[str, Any] = {"seed": index, "size": options.size, "steps": options.steps}
    if options.task == "animate":
        sound, phonemes = spoken_sound(person, index, options.seconds)
        drawn = person.draw().frames
        face, file = folder / "face.png", folder / "sound.wav"
        cv2.imwrite(str(face), drawn[0][:, :, ::-1])
        soundfile.write(file, sound, person.spec.sample_rate, subtype="FLOAT")
        clip = engine.run(check(Request(task="animate", face=face, sound=file, **fields), engine.preset))
        return clip, {"samples": sound, "phonemes": phonemes, "person": drawn}
    room_s = options.seconds - TAIL_S - 0.2
    emotion = emotion_named(person.caption.text)
    text = sentences(index, lambda text: time_text(text, emotion=emotion).end_s <= room_s)
    request = Request(
        task="generate", prompt=person.caption.text, speech=text, duration_s=options.seconds, **fields
    )
    clip = engine.run(check(request, engine.preset))
    return clip, {"samples": None, "phonemes": clip.plan.phonemes, "person": None}


def measured(clip: Clip, truth: Row, probes: Instruments) -> list[Row]:
    """A row a window, of all the frames and samples that it holds."""
    fps, rate = clip.fps, clip.sample_rate
    frames = np.stack(list(clip.reel.frames()))
    samples = clip.samples if truth["samples"] is None else truth["samples"]
    spans = [(w.start, w.end) for w in clip.plan.windows]
    half = spans[0][1] // 2
    person = frames[:half] if truth["person"] is None else truth["person"]
    voice = samples[: round(half / fps * rate)]
    wanted = mouth_track(truth["phonemes"], len(frames), fps)[:, 0]
    rows = []
    for index, (start, end) in enumerate(spans):
        # the half that is compared with is no part of what is compared
        look = frames[half if index == 0 and truth["person"] is None else start : end]
        hear = samples[round((half if index == 0 else start) / fps * rate) : round(end / fps * rate)]
        own = samples[round(start / fps * rate) : round(end / fps * rate)]
        colour = mean_colour(frames[start:end])
        row: Row = {
            "start_s": start / fps,
            "end_s": end / fps,
            "loudness_lufs": loudness(own, rate),
            "colour_lab": [round(float(x), 3) for x in colour],
        }
        row["colour"] = float(np.linalg.norm(colour - (rows[0]["colour_lab"] if rows else colour)))
        if probes.opening is not None:
            read = probes.opening.read(frames[start:end])
            row["synchrony"] = correlation(read, wanted[start:end])
            if probes.recogniser is not None:
                heard = heard_opening(own, end - start, fps, probes.recogniser)
                row["synchrony_heard"] = correlation(read, heard)
        if probes.recogniser is not None:
            spoken = [p for p in truth["phonemes"] if start / fps <= (p.start_s + p.end_s) / 2 < end / fps]
            meant = said(spoken)
            row["errors"] = edit_distance(probes.recogniser.hear(own), meant) / max(1, len(meant))
        if probes.look is not None:
            row["identity"] = identity_likeness(look, person, probes.look)
        if probes.tone is not None:
            row["voice"] = voice_likeness(hear, voice, probes.tone)
        rows.append(row)
    return rows


def table(clips: Sequence[Row]) -> str:
    """Markdown: each figure in the first and in the last window, and the change, over clips."""
    lines = [
        "| figure | first | last | change | change without its sign | allowed |",
        "|---|---|---|---|---|---|",
    ]
    for key, (name, allowed) in FIGURES.items():
        pairs = [
            (clip["windows"][0][key], clip["windows"][-1][key])
            for clip in clips
            if clip["windows"][0].get(key) is not None and clip["windows"][-1].get(key) is not None
        ]
        if not pairs:
            continue
        first, last = np.array(pairs).T
        change = last - first
        cells = [_mean(first), _mean(last), _mean(change), _mean(np.abs(change)), allowed]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: np.ndarray) -> str:
    error = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{error}"


def kept_rows(path: Path) -> Iterator[Row]:
    if path.exists():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=("generate", "animate"), default="generate")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--probes", type=Path, default=None, help="their folder; see `uniavgen eval --help`")
    parser.add_argument("--out", type=Path, default=Path("drift.jsonl"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    probes = load_instruments(options.probes)
    for name in ("opening", "recogniser", "look", "tone"):
        if getattr(probes, name) is None:
            logger.warning("there is no %s: its figures are left out (--probes names a folder)", name)
    engine = Engine.from_preset(load_preset(options.preset, options.set))
    run = {name: getattr(options, name) for name in ("task", "seconds", "preset", "set", "size", "steps")}
    run["weights_sha256"] = engine.weights_hash
    rows = [row for row in kept_rows(options.out) if all(row.get(key) == value for key, value in run.items())]
    for index in sorted(set(range(options.clips)) - {row["clip"] for row in rows}):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            clip, truth = made(engine, options, index, Path(folder))
            row = {**run, "clip": index, "windows": measured(clip, truth, probes)}
            clip.close()
        row["took_s"] = round(time.perf_counter() - started, 1)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        logger.info("clip %d: %d windows, %.0f s", index, len(row["windows"]), row["took_s"])
    print(table([row for row in rows if row["clip"] < options.clips]))


if __name__ == "__main__":
    main()
