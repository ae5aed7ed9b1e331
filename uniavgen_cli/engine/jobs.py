"""Rows of a job file as checked jobs, or one line each that says what is wrong. No torch."""

import difflib
import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from uniavgen_cli.config import DEFAULT_PRESET, Preset, load_preset, weights_folder
from uniavgen_cli.engine.jobfile import Row
from uniavgen_cli.engine.names import clean, container, parse_size, slug
from uniavgen_cli.engine.provenance import FILES, content_of, digest, given_files, hash_file
from uniavgen_cli.engine.request import NEEDED_FILES, Plan, Request, check
from uniavgen_cli.engine.weights import weights_sha256
from uniavgen_cli.errors import InputError, OutputError, UniAVGenError, UsageError
from uniavgen_cli.media.output import SUFFIXES

FileId = tuple[int, int]

_SPEECH = ("speech", "voice", "voice_text", "language")
_OF_A_TASK = {
    "generate": (*_SPEECH, "face", "duration_s"),
    "dub": (*_SPEECH, "video", "keep_sound", "subtitles"),
    "animate": ("face", "sound"),
    "continue": (*_SPEECH, "video", "duration_s"),
}
_NAMES = {"duration": "duration_s", "clip": "video"}  # as the commands call them
_FIELDS = {field.name for field in fields(Request)} - {"task"}
_OWN = ("task", "preset", "set", "output")
_KEYS = sorted(_FIELDS - {"duration_s"} | set(_OWN) | set(_NAMES))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked job: `name` is the file it writes, `content` the hash of all that decides what is in it."""

    number: int
    line: int
    name: str
    plan: Plan
    inputs: Mapping[str, Any]
    weights_sha256: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why the job of a row can't be done."""

    number: int
    line: int
    error: UniAVGenError


def check_jobs(
    rows: list[Row],
    folder: Path,
    defaults: Mapping[str, Any],
    may_write: Callable[[str, Container[FileId]], None] = lambda name, inputs: None,
) -> tuple[list[Job], list[Problem]]:
    """Every row as a job, and what is wrong with those that can't be done.

    Relative files are looked for in `folder`. What a row doesn't say is in `defaults`, then in the file's
    own. `may_write` raises OutputError for a name that may not be written, knowing all inputs.
    """
    presets: dict[str, Preset] = {}
    hashes: dict[Path, Any] = {}  # of files and of weights
    jobs: list[Job] = []
    problems: list[Problem] = []
    taken: dict[str, Job] = {}
    for row in rows:
        try:
            job = _checked(row, folder, defaults, presets, hashes)
            if other := taken.get(job.name.casefold()):
                raise InputError(
                    f"it writes {job.name!r}, as job {other.number} (line {other.line}) does",
                    "give it an output or a seed of its own",
                )
            taken[job.name.casefold()] = job
            jobs.append(job)
        except UniAVGenError as error:
            problems.append(Problem(number=row.number, line=row.line, error=error))
    inputs = {file_id(path) for job in jobs for path in given_files(job.plan.request).values()}
    for job in list(jobs):
        try:
            may_write(job.name, inputs)
        except OutputError as error:
            problems.append(Problem(number=job.number, line=job.line, error=error))
            jobs.remove(job)
    return jobs, sorted(problems, key=lambda problem: problem.number)


def file_id(path: Path) -> FileId:
    """What two names of one file have in common."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _checked(
    row: Row,
    folder: Path,
    defaults: Mapping[str, Any],
    presets: dict[str, Preset],
    hashes: dict[Path, Any],
) -> Job:
    options, task = _options(row, defaults)
    preset = _preset(options, folder, presets)
    output = options.pop("output", None)
    request = _request(task, options, folder)
    seed_given = "seed" in options
    plan = check(request, preset)
    weights = weights_folder(preset)
    if weights not in hashes:
        hashes[weights] = weights_sha256(weights)
    for path in given_files(request).values():
        if path not in hashes:
            hashes[path] = hash_file(path)
    inputs = {name: hashes[path] for name, path in given_files(request).items()}
    if not seed_given:  # of what is in the job, so that the same job gives the same clip every time
        content = digest(content_of(plan, inputs, hashes[weights]))
        plan = replace(plan, request=replace(request, seed=int(content[:8], 16) % 2**31))
    content = digest(content_of(plan, inputs, hashes[weights]))
    return Job(
        number=row.number,
        line=row.line,
        name=_output_name(output, plan.request, content),
        plan=plan,
        inputs=inputs,
        weights_sha256=hashes[weights],
        content=content,
    )


def _options(row: Row, defaults: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The options that count for a row, by the fields' names, and its task."""
    if not isinstance(row.options, Mapping):
        raise InputError("it is not a list of keys and values", "such as `task: generate`")
    given = {**row.defaults, **defaults}
    task = row.options.get("task", given.get("task"))
    if not isinstance(task, str) or task not in NEEDED_FILES:
        raise UsageError(
            "it has no task" if task is None else f"there is no task {_shown(task)}",
            f"there are {', '.join(NEEDED_FILES)}",
        )
    others = {name for names in _OF_A_TASK.values() for name in names} - set(_OF_A_TASK[task])
    options: dict[str, Any] = {}
    for source in (given, row.options):
        for key, value in source.items():
            name = _NAMES.get(key, key) if isinstance(key, str) else ""
            if key not in _KEYS:
                close = difflib.get_close_matches(_shown(key).strip("'"), _KEYS, n=1)
                raise UsageError(
                    f"there is no key {_shown(key)}" + (f"; did you mean {close[0]}?" if close else ""),
                    f"there are {', '.join(_KEYS)}",
                )
            if name in others and source is row.options:
                raise UsageError(f"{task} takes no {key}", f"`uniavgen {task} --help` lists what it takes")
            if name in others or name == "task" or value is None:
                continue  # a default is for the tasks that take it
            if name == "set":
                options["set"] = [*options.get("set", ()), *_settings(value)]
            else:
                options[name] = value
    return options, task


def _shown(value: Any) -> str:
    """A value for a message; a list may refer to itself a million times over, so only its kind is told."""
    return repr(str(value)[:40]) if isinstance(value, str | int | float) else type(value).__name__


def _settings(value: Any) -> list[str]:
    """`set` as the command takes it: KEY=VALUE, a list of those, or a mapping."""
    if isinstance(value, Mapping):
        plain = (bool, int, float, str, type(None))
        for inner in value.values():
            if not all(isinstance(item, plain) for item in (inner if isinstance(inner, list) else [inner])):
                raise UsageError("its set has a value that is no number, text or list", "one key a setting")
        return [f"{key}={json.dumps(inner)}" for key, inner in value.items()]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise UsageError("its set is no KEY=VALUE", "for example set: {sampling.steps: 10}")
    return values


def _preset(options: dict[str, Any], folder: Path, presets: dict[str, Preset]) -> Preset:
    name, settings = options.pop("preset", DEFAULT_PRESET), options.pop("set", [])
    if not isinstance(name, str):
        raise UsageError("its preset is no name", "`uniavgen presets list` names them")
    beside = folder / name
    if name.endswith((".yaml", ".yml")) and beside.is_file():
        name = str(beside)
    key = json.dumps([name, settings])
    if key not in presets:
        presets[key] = load_preset(name, settings)
    return presets[key]


def _request(task: str, options: Mapping[str, Any], folder: Path) -> Request:
    """The request of a job's options, of the right types. Raises UsageError, InputError."""
    values = dict(options)
    if "size" in values:
        if not isinstance(values["size"], str | int):
            raise UsageError("its size is no size", "give the short side in pixels, or WIDTHxHEIGHT")
        values["size"] = parse_size(str(values["size"])[:40])
    for name in FILES:
        if isinstance(values.get(name), str):
            values[name] = folder / values[name]
    if isinstance(values.get("speech"), str):
        values["speech"] = _speech(values["speech"], folder)
    try:
        request = TypeAdapter(Request).validate_python({"task": task, **values})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = {value: key for key, value in _NAMES.items()}.get(str(first["loc"][0]), str(first["loc"][0]))
        raise UsageError(f"{where}: {first['msg'].lower()}", "see `uniavgen batch --help`") from None
    if not 0 <= request.seed < 2**63:
        raise UsageError(f"seed {request.seed} is outside 0..2^63", "take a smaller one")
    if request.face_index < 0:
        raise UsageError(f"face_index {request.face_index} is negative", "0 is the largest face")
    if task == "generate" and not (request.prompt or request.speech or request.face):
        raise UsageError("generate needs a prompt, speech or a face", "give it one of them")
    if request.voice_text is not None and request.voice is None:
        raise UsageError("voice_text says what a voice file holds, and none is given", "give it a voice")
    return request


def _speech(text: str, folder: Path) -> str:
    """The words themselves, or those in @FILE."""
    if not text.startswith("@"):
        return text
    try:
        return (folder / text[1:]).read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"its speech can't be read from {text[1:]!r}: {reason}", "check the file") from None


def _output_name(output: Any, request: Request, content: str) -> str:
    """The bare name of the file to write. Raises OutputError for one that can't be."""
    kept = container(request)
    if output is None:
        return f"{request.task}-{slug(request)}-{content[:8]}{kept}"
    if not isinstance(output, str):
        raise UsageError("its output is no text", "give a file name, such as hello.mp4")
    if "/" in output or "\\" in output or output.strip() in (".", ".."):
        raise OutputError(
            f"the output {output[:80]!r} is not a bare file name", "all outputs go to one folder"
        )
    name = clean(output)
    suffix = Path(name).suffix.lower()
    if name and not suffix:
        name, suffix = name + kept, kept
    if not name or not Path(name).stem.strip(".") or suffix not in SUFFIXES:
        raise OutputError(
            f"the output {output[:80]!r} is no name of a clip", f"end it in {' '.join(SUFFIXES)}"
        )
    if suffix == ".mp4" and kept != ".mp4":
        raise OutputError(f"the output {name!r} can't hold the video as it is", f"end its name in {kept}")
    return name
