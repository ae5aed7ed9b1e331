"""How a clip was made, as it travels in the clip's own metadata. No torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen_cli import __version__
from uniavgen_cli.config import Preset, changed_keys

if TYPE_CHECKING:
    from uniavgen_cli.engine.request import Request

RECORD_TAG, NOTICE_TAG = "comment", "description"  # both survive in MP4 and Matroska
NOTICE = "AI-generated picture or sound, made with uniavgen"
# IPTC's term for media made by a trained model, https://cv.iptc.org/newscodes/digitalsourcetype
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def build(
    request: "Request", preset: Preset, *, weights_hash: str, runtime: Mapping[str, str]
) -> dict[str, Any]:
    """Everything needed to say how a clip was made and to make it again.

    `runtime` is what was chosen by rule and can change bytes: device, dtype, attention, threads, torch.
    """
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(request).items()
        if name not in ("task", "seed") and value not in (None, "")
    }
    return {
        "uniavgen": __version__,
        "ai_generated": True,
        "digital_source_type": SOURCE_TYPE,
        "task": request.task,
        "seed": request.seed,
        "options": options,
        "preset": preset.name,
        "set": changed_keys(preset),
        "sampling": {**preset.sampling.model_dump(), "steps": request.steps or preset.sampling.steps},
        "weights_sha256": weights_hash,
        "runtime": dict(runtime),
    }


def to_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """Container metadata that carries `record` and marks the clip as AI-generated."""
    return {NOTICE_TAG: f"{NOTICE} {record['uniavgen']}", RECORD_TAG: json.dumps(record, ensure_ascii=False)}


def from_tags(tags: Mapping[str, str]) -> dict[str, Any] | None:
    """The record in a container's metadata; None when the clip was not made here."""
    folded = {name.lower(): value for name, value in tags.items()}  # Matroska writes its tags in capitals
    try:
        record = json.loads(folded.get(RECORD_TAG, ""))
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "uniavgen" in record else None


def weights_files(folder: Path) -> list[Path]:
    """The files that make up a set of weights, in a fixed order."""
    return sorted(folder.rglob("*.safetensors"))


def weights_sha256(folder: Path) -> str:
    """One hash over names and contents of the weights in `folder`."""
    total = hashlib.sha256()
    for path in weights_files(folder):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{digest}  {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()
