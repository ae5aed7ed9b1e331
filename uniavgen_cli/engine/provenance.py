"""How a clip was made, as it travels in the clip's own metadata. No torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen_cli import __version__
from uniavgen_cli.config import Preset, base_name, changed_keys, rebuilt_preset, weights_folder
from uniavgen_cli.engine.weights import file_sha256, weights_sha256
from uniavgen_cli.errors import InputError, UsageError, WeightsError

if TYPE_CHECKING:
    from uniavgen_cli.engine.request import Plan, Request

RECORD_TAG, NOTICE_TAG = "comment", "description"  # both survive in MP4 and Matroska
NOTICE = "AI-generated picture or sound, made with uniavgen"
# IPTC's term for media made by a trained model, https://cv.iptc.org/newscodes/digitalsourcetype
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

WORDS = ("prompt", "speech", "voice_text")  # a request's own words and given files: what --private leaves out
FILES = ("face", "voice", "video", "sound", "subtitles")
NAMED = ("lora", "weights")  # keys of a preset that name a file or folder


def build(
    plan: "Plan", *, inputs: Mapping[str, Any], weights_hash: str, runtime: Mapping[str, str]
) -> dict[str, Any]:
    """Everything needed to say how a clip was made and to make it again.

    `inputs` is what `hash_inputs` gave; `runtime` what was chosen by rule and can change bytes: device,
    dtype, attention, threads, torch. Of a private clip the words and file names are left out; which, is said.
    """
    request, preset = plan.request, plan.preset
    options = {
        field.name: str(value) if isinstance(value, Path) else value
        for field in fields(request)
        if field.name not in ("task", "seed") and (value := getattr(request, field.name)) != field.default
    }
    left_out = [name for name in (*WORDS, *FILES) if request.private and options.pop(name, None) is not None]
    changes = changed_keys(preset)
    left_out += [name for name in NAMED if request.private and changes.pop(name, None) is not None]
    voice_from = _voice_from(plan)
    return {
        "uniavgen": __version__,
        "ai_generated": True,
        "digital_source_type": SOURCE_TYPE,
        "voice_given": voice_from is not None,
        "voice_from": voice_from,
        "task": request.task,
        "seed": request.seed,
        "options": options,
        "left_out": left_out,
        "inputs": dict(inputs),
        "preset": preset.name,
        "base": base_name(preset),
        "set": changes,
        "sampling": {**preset.sampling.model_dump(), "steps": request.steps or preset.sampling.steps},
        "weights_sha256": weights_hash,
        "lora_sha256": lora_sha256(preset),
        "windows": len(plan.windows),
        "runtime": dict(runtime),
    }


def content_of(plan: "Plan", inputs: Mapping[str, Any], weights_hash: str) -> dict[str, Any]:
    """Everything that decides what a clip holds; where its files lie does not."""
    options = {
        field.name: getattr(plan.request, field.name)
        for field in fields(plan.request)
        if field.name not in FILES
    }
    preset = plan.preset.model_dump(exclude={"name", "about", "extends", "train", "lora"})
    weights = {"weights": weights_hash, "lora": lora_sha256(plan.preset)}
    seen = {"closeup": plan.closeup and asdict(plan.closeup)}
    return {"options": options, "inputs": dict(inputs), "preset": preset, **weights, **seen}


def lora_sha256(preset: Preset) -> str | None:
    """The hash of the preset's adapters; None without any."""
    return None if preset.lora is None else file_sha256(Path(preset.lora))


def digest(content: Mapping[str, Any]) -> str:
    """The hash of such a content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _voice_from(plan: "Plan") -> str | None:
    """Which given file the voice is taken from; None when it is made up."""
    request = plan.request
    if request.voice is not None:
        return "voice"
    if request.task == "animate":
        return "sound"
    if request.task == "dub":
        return "video" if plan.voice is not None else None
    return "video" if plan.media is not None and plan.media.audio is not None else None


def given_files(request: "Request") -> dict[str, Path]:
    """The files a request names, by their option."""
    return {name: path for name in FILES if (path := getattr(request, name)) is not None}


def hash_inputs(request: "Request") -> dict[str, dict[str, Any]]:
    """The size and sha256 of each given file, by its option. Raises InputError for one that can't be read."""
    return {name: hash_file(path) for name, path in given_files(request).items()}


def hash_file(path: Path) -> dict[str, Any]:
    """A file's size and sha256. Raises InputError when it can't be read."""
    try:
        return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    except OSError as error:
        raise InputError(f"{str(path)!r} can't be read: {error.strerror}", "check the file") from None


def remake(record: Mapping[str, Any], clip: Path) -> tuple["Request", Preset]:
    """The request and preset of a record, its inputs found and unchanged.

    A relative name is looked for where the command runs, then from the folder of `clip`, then beside `clip`.
    Raises InputError for inputs that are missing or changed, WeightsError for other weights, UsageError for a
    preset or options that are not known here.
    """
    from pydantic import TypeAdapter, ValidationError

    from uniavgen_cli.engine.request import Request

    try:
        if left_out := ", ".join(record["left_out"]):
            raise InputError(
                f"{clip} was made with --private: it does not hold its {left_out}", "make it anew"
            )
        options = {name: value for name, value in record["options"].items()}
        if unknown := set(options) - {field.name for field in fields(Request)}:
            raise UsageError(
                f"{clip} was made by uniavgen {record['uniavgen']} with {', '.join(sorted(unknown))}, which "
                f"this version {__version__} does not have",
                "use that version",
            )
        request = TypeAdapter(Request).validate_python(
            {**options, "task": record["task"], "seed": record["seed"]}
        )
        preset = rebuilt_preset(record["preset"], record["base"], record["set"])
        inputs, weights_hash = dict(record["inputs"]), record["weights_sha256"]
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        raise InputError(
            f"the metadata of {clip} do not say how to make it ({type(error).__name__})",
            f"it was made by uniavgen {record.get('uniavgen')}; use that version",
        ) from None
    request, wrong = _found_inputs(request, inputs, clip)
    if preset.lora is not None:
        preset = _with_found_lora(preset, record.get("lora_sha256"), clip)
    if wrong:
        raise InputError(
            f"{clip} can't be made again: {'; '.join(wrong)}", "give back the files it was made of"
        )
    folder = weights_folder(preset)
    if weights_sha256(folder) != weights_hash:
        raise WeightsError(
            f"{clip} was made with other weights than those in {folder}",
            f"it needs those whose hash begins with {str(weights_hash)[:12]}; see `uniavgen weights list`",
        )
    return request, preset


def _with_found_lora(preset: Preset, sha256: Any, clip: Path) -> Preset:
    """The preset with its adapters where they are now; WeightsError when they are not, or are others."""
    path = Path(str(preset.lora))
    for place in (path, clip.parent / path, clip.parent / path.name):
        if isfile(place) and file_sha256(place) == sha256:
            return preset.model_copy(update={"lora": str(place)})
    raise WeightsError(
        f"{clip} was made with the LoRA {path}, which is missing or has changed",
        f"it needs the file whose sha256 begins with {str(sha256)[:12]}",
    )


def _found_inputs(request: "Request", inputs: Mapping[str, Any], clip: Path) -> tuple["Request", list[str]]:
    """The request with its files where they are now, and what is wrong with the others."""
    wrong = []
    for name in FILES:
        path = getattr(request, name)
        if path is None:
            continue
        places = (path, clip.parent / path, clip.parent / path.name)
        there = [place for place in places if isfile(place)]  # False as well for a name no file can have
        same = next((place for place in there if hash_file(place) == inputs.get(name)), None)
        if same is not None:
            found: dict[str, Any] = {name: same}
            request = replace(request, **found)
        elif there:
            wrong.append(f"its {name} {str(there[0])!r} has changed since")
        else:
            wrong.append(f"its {name} {str(path)!r} is missing")
    return request, wrong


def to_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """Container metadata that carries `record` and marks the clip as AI-generated."""
    voice = "its voice follows a given one" if record["voice_given"] else "no voice was given"
    text = json.dumps(record, ensure_ascii=False)
    # bytes of a name that are no UTF-8 stay JSON, as escapes
    text = text.encode("utf-8", "backslashreplace").decode()
    return {NOTICE_TAG: f"{NOTICE} {record['uniavgen']}; {voice}", RECORD_TAG: text}


def from_tags(tags: Mapping[str, str]) -> dict[str, Any] | None:
    """The record in a container's metadata; None when the clip was not made here."""
    folded = {name.lower(): value for name, value in tags.items()}  # Matroska writes its tags in capitals
    try:
        record = json.loads(folded.get(RECORD_TAG, ""))
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "uniavgen" in record else None
