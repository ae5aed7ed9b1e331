"""The way of all four clip commands: check everything, load the engine, make and write each take."""

import itertools
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen_cli.commands import _output
from uniavgen_cli.commands._options import Common
from uniavgen_cli.engine.names import container, parse_size, slug
from uniavgen_cli.errors import InputError, Interrupted, OutputError

if TYPE_CHECKING:
    from uniavgen_cli.config import Preset
    from uniavgen_cli.engine.engine import Clip, Engine
    from uniavgen_cli.engine.request import Plan, Request

logger = logging.getLogger(__name__)
OUTPUTS = Path("outputs")


def make_clips(common: Common, **fields: Any) -> None:
    """Make and write `common.takes` clips of the request that `fields` describe, and report them."""
    from uniavgen_cli.config import load_preset
    from uniavgen_cli.engine.request import Request

    preset = load_preset(common.preset, _overrides(common))
    seed = common.seed if common.seed is not None else random.SystemRandom().randrange(2**31)
    request = Request(
        seed=seed,
        steps=common.steps,
        size=parse_size(common.size),
        private=common.private,
        unlimited=common.unlimited,
        **fields,
    )
    produce(common, request, preset)


def produce(
    common: Common, request: "Request", preset: "Preset", earlier: Mapping[str, Any] | None = None
) -> None:
    """Check a request, make its clips and report them; `earlier` is the record of one made again."""
    from uniavgen_cli.config import weights_files
    from uniavgen_cli.engine.request import check

    plan = check(request, preset)
    paths = output_paths(request, common)
    weights_files(preset)
    with _output.progress(quiet=common.quiet) as progress:
        clips = _make(plan, paths, common, progress, earlier)
    _report(common, request, preset, clips)


def _make(
    plan: "Plan",
    paths: list[Path],
    common: Common,
    progress: _output.ProgressCallback,
    earlier: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    started = time.perf_counter()
    progress("loading", 0, 1)
    from uniavgen_cli.engine.engine import Engine  # torch: only now that nothing else can be wrong

    engine = Engine.from_preset(plan.preset)
    if engine.mode_reason and not common.quiet:
        _output.note(f"memory mode {engine.mode.name}: {engine.mode_reason}")
    progress("loading", 1, 1)
    loading_s = time.perf_counter() - started
    clips: list[dict[str, Any]] = []
    first_seed = plan.request.seed
    # a clip of this command that was stopped has had one
    if common.seed is None and len(paths) == common.best_of == 1:
        begun = engine.seed_begun(plan, paths[0].parent)
        first_seed = first_seed if begun is None else begun
    try:
        for take, path in enumerate(paths):
            seeds = range(first_seed + take * common.best_of, first_seed + (take + 1) * common.best_of)
            clip, scores = _best(engine, plan, seeds, path.parent, progress)
            if earlier is not None:
                clip = _as_earlier(clip, earlier)
            timings = {"loading": loading_s if take == 0 else 0.0, **clip.timings}
            clips.append(_write(clip, path, common.overwrite, progress, timings) | scores)
            clip.close()
    except (KeyboardInterrupt, Interrupted) as stopped:
        if not clips:
            raise
        kept = f"kept {', '.join(clip['path'] for clip in clips)}"
        hint = getattr(stopped, "hint", "")  # which windows of a long clip are kept
        raise Interrupted("interrupted", f"{kept}; {hint}" if hint else kept) from None
    return clips


def _best(
    engine: "Engine", plan: "Plan", seeds: Sequence[int], folder: Path, progress: _output.ProgressCallback
) -> tuple["Clip", dict[str, Any]]:
    """The best clip of some seeds, by what can be measured of each, and that; one alone isn't measured."""

    def make(seed: int) -> "Clip":
        seeded = replace(plan, request=replace(plan.request, seed=seed))
        return engine.run(seeded, progress=progress, keep_in=folder)

    best = make(seeds[0])
    if len(seeds) == 1:
        return best, {}
    from uniavgen_cli.evaluation.instruments import load_instruments
    from uniavgen_cli.evaluation.takes import score_take

    instruments = load_instruments()
    scores = [{"seed": seeds[0], **score_take(best, instruments)}]
    for seed in seeds[1:]:
        clip = make(seed)
        scores.append({"seed": seed, **score_take(clip, instruments)})
        if scores[-1]["score"] > max(score["score"] for score in scores[:-1]):
            best, clip = clip, best
        clip.close()
    return best, {"best_of": scores}


def _as_earlier(clip: "Clip", earlier: Mapping[str, Any]) -> "Clip":
    """The clip with its files named as the earlier record names them; other differences are told."""
    for what, before in {"uniavgen": earlier["uniavgen"], **earlier["runtime"]}.items():
        now = {"uniavgen": clip.record["uniavgen"], **clip.record["runtime"]}.get(what)
        if now != before:
            logger.warning("%s was %s and is %s: the bytes may differ", what, before, now)
    return replace(clip, record={**clip.record, "options": earlier["options"]})


def _write(
    clip: "Clip",
    path: Path,
    overwrite: bool,
    progress: _output.ProgressCallback,
    timings: dict[str, float],
) -> dict[str, Any]:
    from uniavgen_cli.media.limits import lifted
    from uniavgen_cli.media.probe import require_video

    progress("writing", 0, 1)
    writing = time.perf_counter()
    path.parent.mkdir(exist_ok=True)  # only outputs/ can be missing by now
    clip.save(path, overwrite=overwrite, progress=progress)
    progress("writing", 1, 1)
    timings["writing"] = time.perf_counter() - writing
    with lifted():
        written = require_video(path)  # what `dub` and `continue` write is more than the new part
    assert written.video is not None
    return {
        "path": str(path),
        "seed": clip.plan.request.seed,
        "seconds": round(written.duration_s, 3),
        "width": written.video.width,
        "height": written.video.height,
        "frames": written.video.num_frames,
        "fps": round(written.video.fps, 3),
        "bytes": path.stat().st_size,
        "timings": {stage: round(seconds, 3) for stage, seconds in timings.items()},
        **({"windows": clip.reel.drift.report()} if len(clip.plan.windows) > 1 else {}),
    }


def _report(common: Common, request: "Request", preset: "Preset", clips: list[dict[str, Any]]) -> None:
    if common.json:
        _output.data_json(
            {
                "task": request.task,
                "preset": preset.name,
                # a clip that was stopped and taken up again has the seed it had then
                "seed": request.seed if common.best_of > 1 else clips[0]["seed"],
                "paths": [clip["path"] for clip in clips],
                "clips": clips,
                "warnings": _output.warnings_seen(),
            }
        )
        return
    for clip in clips:
        _output.data(clip["path"])
        if not common.quiet:
            chosen = f" (best of {len(clip['best_of'])})" if "best_of" in clip else ""
            timings = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in clip["timings"].items())
            _output.note(
                f"{clip['seconds']:.2f} s at {clip['width']}x{clip['height']}, seed {clip['seed']}{chosen}, "
                f"made in {sum(clip['timings'].values()):.1f} s ({timings})"
            )


def read_speech(text: str | None) -> str | None:
    """The words `--speech` means: text, the content of @FILE, or standard input for `-`."""
    if text is None:
        return None
    source = "--speech"
    if text == "-":
        source, text = "standard input", sys.stdin.read()
    elif text.startswith("@"):
        source = text[1:]
        try:
            text = Path(source).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InputError(f"--speech can't be read from {source}: {reason}") from error
    if not text.strip():
        raise InputError(f"{source} holds no words to say", "leave --speech out for a clip without speech")
    return text.strip()


def output_paths(request: "Request", common: Common) -> list[Path]:
    """Where each take goes. Raises OutputError when a file is in the way or the folder can't be written."""
    if common.output is not None:
        one = common.output
        numbered = [one.parent / f"{one.stem}-{take}{one.suffix}" for take in range(1, common.takes + 1)]
        paths = numbered if common.takes > 1 else [one]
    else:
        stem, suffix = f"{request.task}-{slug(request)}", container(request)
        numbers = (f"-{number}" if number > 1 else "" for number in itertools.count(1))
        names = (OUTPUTS / f"{stem}{number}{suffix}" for number in numbers)
        free = (path for path in names if common.overwrite or not path.exists())
        paths = list(itertools.islice(free, common.takes))
    for path in paths:
        _check_output(path, common, request)
    return paths


def _check_output(path: Path, common: Common, request: "Request") -> None:
    from uniavgen_cli.media.output import check_output

    if path.is_dir():
        raise OutputError(f"the output {path} is a folder", "name a file in it, such as clip.mp4")
    from uniavgen_cli.engine.provenance import given_files

    given = given_files(request).values()
    if any(path.exists() and path.samefile(file) for file in given):
        raise OutputError(f"the output {path} is also the input", "name another file with -o")
    if path.suffix.lower() == ".mp4" and (other := container(request)) != ".mp4":
        raise OutputError(f"the output {path} can't hold the video as it is", f"end its name in {other}")
    folder = path.absolute().parent
    if common.output is None and not folder.exists():
        folder = folder.parent  # outputs/ is made when the clip is written
    else:
        check_output(path, common.overwrite)
    try:
        with tempfile.TemporaryFile(dir=folder):  # root may write everywhere, but not to /proc
            pass
    except OSError as error:
        reason = error.strerror or "no reason given"
        raise OutputError(
            f"the folder {folder} can't be written: {reason}", "write elsewhere with -o"
        ) from error


def _overrides(common: Common) -> list[str]:
    attention = [f"runtime.attention={common.attention}"] if common.attention else []
    # quoted: a name may be anything, and --set reads YAML
    lora = [f"lora={json.dumps(str(common.lora))}"] if common.lora else []
    return [*common.set, *attention, *lora]
