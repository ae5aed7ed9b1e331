"""A folder of prepared clips: the shards that `cache.load` reads, what they are of, and what was left out.

`prepared.json` says which files it was made of and how, `left-out.csv` what of them made no clip, and why. A
video that is done stays done; each is written whole or not at all.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uniavgen_cli.data.dataset import LENGTHS
from uniavgen_cli.errors import InputError, OutputError

MANIFEST, LEFT_OUT = "prepared.json", "left-out.csv"
SHARD = 64  # clips a file


@dataclass(frozen=True, kw_only=True)
class How:
    """What the clips are made for: a preset's clip section, and its video codec's hash."""

    preset: str
    codec: str
    short_side: int
    closeup: float  # of a square that a face is seen to take; 0: the whole picture is seen
    fps: int
    sample_rate: int
    lengths: tuple[int, ...]
    phonemes: bool  # placed on the audio tokens, and the words have to be English

    @classmethod
    def of(cls, preset: Any, codec: str) -> "How":
        """For the preset (config.Preset)."""
        clip = preset.clip
        inside = {n for n in LENGTHS if clip.min_frames <= n <= clip.max_frames}
        return cls(
            preset=preset.name,
            codec=codec,
            short_side=clip.short_side,
            closeup=clip.closeup,
            fps=clip.fps,
            sample_rate=clip.sample_rate,
            lengths=tuple(sorted(inside | {clip.max_frames})),
            phonemes=bool(preset.model.get("phoneme_vocab")),
        )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder of prepared clips says of itself; None for another one. Raises InputError."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {"how": dict(manifest["how"]), "files": dict(manifest["files"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} can't be read ({error})", "prepare into a new folder") from None


def open_folder(out: Path, how: How) -> dict[str, Any]:
    """The files done so far; shards that no finished file has are removed."""
    manifest = read_manifest(out)
    if manifest is None:
        if any(out.glob("*.safetensors")):
            raise OutputError(f"the folder {out} holds clips of another kind", "name a new folder with -o")
        out.mkdir(parents=True, exist_ok=True)
        save(out, how, {})
        return {}
    now = json.loads(json.dumps(asdict(how)))
    other = [name for name in now if manifest["how"].get(name) != now[name]]
    if other:
        before, after = manifest["how"].get(other[0]), now[other[0]]
        what = "by another video VAE" if other[0] == "codec" else f"with {other[0]} {before}, not {after}"
        raise OutputError(f"the clips in {out} were made {what}", "name a new folder with -o")
    files: dict[str, Any] = manifest["files"]
    done = {path for entry in files.values() for path in shards_of(out, entry["shards"])}
    for path in [*out.glob("audio-*"), *out.glob("video-*")]:
        if path not in done:
            path.unlink()
    return files


def shards_of(out: Path, numbers: Iterable[int]) -> list[Path]:
    """The files of the shards of those numbers: sound and picture of each."""
    return [out / f"{kind}-{number:06d}.safetensors" for number in numbers for kind in ("audio", "video")]


def write_shards(out: Path, clips: Sequence[Mapping[str, Any]], first: int) -> Iterator[int]:
    """Write the clips in shards from number `first` on; yields the numbers."""
    from safetensors.torch import save_file

    for number, start in enumerate(range(0, len(clips), SHARD), start=first):
        part = clips[start : start + SHARD]
        texts = {str(index): clip["texts"] for index, clip in enumerate(part)}
        for path, half in zip(shards_of(out, [number]), ("sound", "picture"), strict=True):
            tensors = {
                f"{index}/{name}": value.contiguous()
                for index, clip in enumerate(part)
                for name, value in clip[half].items()
            }
            beside = path.with_suffix(".tmp")
            save_file(tensors, beside, metadata={"texts": json.dumps(texts if half == "sound" else {})})
            beside.replace(path)
        yield number


def save(out: Path, how: How, files: Mapping[str, Any]) -> None:
    """Write what the folder holds and what was left out, each whole."""
    _write_whole(out / MANIFEST, json.dumps({"how": asdict(how), "files": files}, indent=1) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "start_s", "end_s", "reason"])
    for path in sorted(files):
        for start_s, end_s, reason in files[path]["left_out"]:
            writer.writerow([path, f"{start_s:.2f}", f"{end_s:.2f}", reason])
    _write_whole(out / LEFT_OUT, table.getvalue())


def _write_whole(path: Path, text: str) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    beside.replace(path)


def forget(out: Path, how: How, files: dict[str, Any], name: str) -> None:
    """A video that has changed is made anew: first its entry goes, then its shards."""
    shards = shards_of(out, files.pop(name)["shards"])
    save(out, how, files)
    for path in shards:
        path.unlink(missing_ok=True)
