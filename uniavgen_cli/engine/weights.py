"""Sets of weights on the disk: what the registry names, what is installed, what its lock says. No torch.

A set is one folder under `weights_dir()`, the user's, where it is pulled or added and holds LOCK_NAME with
each file's size and sha256; or it comes with the package, and has none.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uniavgen_cli.config import find_weights, load_preset, registry_path, shipped_weights_dir, weights_dir
from uniavgen_cli.errors import InputError, OutputError, UsageError, WeightsError

logger = logging.getLogger(__name__)

LOCK_NAME = "weights.lock.json"
SUFFIXES = (".safetensors", ".pth", ".bin")  # of files that hold tensors
REFETCH = "fetch it again"
PULLING = ".pulling"  # under weights_dir(): what a pull has fetched so far
INDEX_SUFFIX = ".safetensors.index.json"

Progress = Callable[[str, int, int], None]  # what is looked at, bytes done, bytes in all


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WantedFile(_Entry):
    """A path or pattern in a repository; `to` is its path here when that is another one."""

    path: str = Field(alias="from")
    to: str | None = None
    sha256: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value


class Source(_Entry):
    """One repository of the hub and what is wanted of it."""

    repo: str
    licence: str
    files: tuple[WantedFile, ...]


class WeightsSet(_Entry):
    """One entry of the registry; without sources it is fetched `by_hand`, by the words there."""

    about: str
    licence: str
    notice: str = ""
    sources: tuple[Source, ...] = ()
    by_hand: str = ""


class LockedFile(_Entry):
    """What one file was when it was pulled or added; `repo` is empty for one that was added."""

    size: int
    sha256: str
    repo: str = ""


class Origin(_Entry):
    """Where a repository of the registry is read from; without a revision its default branch."""

    repo: str
    revision: str | None


class Lock(_Entry):
    """What was pulled or added: the origin of each repository, or a folder; every file by its path."""

    origins: dict[str, Origin] = {}
    added_from: str = ""
    files: dict[str, LockedFile]


def registry() -> dict[str, WeightsSet]:
    """The sets the registry names."""
    values = yaml.safe_load(registry_path().read_text(encoding="utf-8"))
    return {name: WeightsSet.model_validate(entry) for name, entry in values.items()}


def set_name(name: str) -> str:
    """The set that `name` means: one of the registry, one that is installed, or the one a preset uses."""
    if name in registry() or (re.fullmatch(r"\w[\w.-]*", name) and find_weights(name).is_dir()):
        return name
    return load_preset(name).weights


def set_folder(name: str) -> Path:
    """Where the files of the set are, or would be."""
    folder = Path(name)
    return folder if folder.is_dir() and os.sep in name else find_weights(name)


def installed_sets() -> list[str]:
    """The names of the sets that are there, the user's and those that came with the package."""
    folders = (weights_dir(), shipped_weights_dir())
    return sorted({path.name for folder in folders for path in folder.glob("[!.]*/")})


def read_lock(folder: Path) -> Lock | None:
    """The lock in a folder of weights; None without one. WeightsError when it can't be read."""
    path = folder / LOCK_NAME
    try:
        return Lock.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise WeightsError(
            f"the lock {path} can't be read ({str(error).splitlines()[0]})", "delete it and pull again"
        ) from error


def write_lock(folder: Path, lock: Lock) -> None:
    """Put the lock beside the files, whole."""
    beside = folder / f".{LOCK_NAME}.new"
    beside.write_text(json.dumps(lock.model_dump(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    beside.replace(folder / LOCK_NAME)


def same_sizes(folder: Path, lock: Lock) -> bool:
    """Every file of the lock is there at its size."""
    return all(_size(folder / path) == file.size for path, file in lock.files.items())


def weights_files(folder: Path) -> list[Path]:
    """The files in `folder` that hold tensors, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)


def weights_sha256(folder: Path) -> str:
    """One hash over names and contents of the weights in `folder`, by its lock where sizes agree with it."""
    lock = read_lock(folder)
    known = lock.files if lock is not None and same_sizes(folder, lock) else {}
    total = hashlib.sha256()
    for path in weights_files(folder):
        name = path.relative_to(folder).as_posix()
        digest = known[name].sha256 if name in known else file_sha256(path)
        total.update(f"{digest}  {name}\n".encode())
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(name: str, progress: Progress = silent) -> tuple[int, bool]:
    """Check every file of an installed set: how many there are, and whether a lock had their checksums.

    Raises WeightsError, naming the first bad file, when one is missing, of another size or content than the
    lock says, cut short, or named by an index and not there.
    """
    folder = set_folder(name)
    if not folder.is_dir():
        raise WeightsError(f"the weights {name} are not installed (looked in {folder})", how_to_get(name))
    lock = read_lock(folder)
    again = f"delete it and run `uniavgen weights pull {name}`, which fetches it alone"
    if lock is None:
        check_whole(folder)
        return len(weights_files(folder)), False
    if lock.added_from:
        again = f"put it right in {lock.added_from} and run `uniavgen weights add` again"
    bad = []
    done, total = 0, sum(file.size for file in lock.files.values())
    for path, file in sorted(lock.files.items()):
        progress(path, done, total)
        size = _size(folder / path)
        if size is None:
            bad.append(f"{folder / path} is missing")
        elif size != file.size:
            bad.append(f"{folder / path} has {size} bytes, not {file.size}")
        elif (found := file_sha256(folder / path)) != file.sha256:
            bad.append(f"{folder / path} has sha256 {found[:12]}, not {file.sha256[:12]}")
        done += file.size
    progress("", total, total)
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise WeightsError(bad[0] + more, again)
    check_whole(folder)
    return len(lock.files), True


def check_whole(folder: Path) -> None:
    """What needs no checksum: no .safetensors file is cut short, no index names a shard that isn't there."""
    for path in sorted(folder.rglob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:  # 8 bytes of the header's length, the header, the tensors
            header_bytes = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(header_bytes) if header_bytes < size else b"")
                tensors = (value for key, value in header.items() if key != "__metadata__")
                end = 8 + header_bytes + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                raise WeightsError(f"{path} is no .safetensors file, or cut short", REFETCH) from error
        if size != end:
            raise WeightsError(f"{path} has {size} bytes where its header says {end}", REFETCH)
    for path in sorted(folder.rglob(f"*{INDEX_SUFFIX}")):
        try:
            shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WeightsError(f"{path} is no index of shards", REFETCH) from error
        if missing := sorted(shard for shard in shards if not (path.parent / shard).is_file()):
            raise WeightsError(f"{path} names {missing[0]}, which is not there", REFETCH)


def add(source: Path, name: str, progress: Progress = silent) -> int:
    """Make a local folder the set `name`, by links, which cost no disk; how many files were linked.

    The folder itself is neither copied nor changed; what it holds now is written to the set's lock. Raises
    InputError for a folder without weights, WeightsError for files that are cut short.
    """
    source = source.expanduser().absolute()
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(f"--name {name!r} is no name for weights", "letters, digits, - _ and . are")
    if not source.is_dir():
        raise InputError(f"{source} is no folder", "give the folder that holds the weights")
    target = weights_dir() / name
    if target.exists() or target.is_symlink():
        raise OutputError(f"there are weights {name} already ({target})", f"`uniavgen weights remove {name}`")
    files = {
        path.relative_to(source).as_posix(): path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts)
    }
    entry = registry().get(name)
    if entry is not None and entry.by_hand:
        raise UsageError(f"{name} is no set of weights to be added", entry.by_hand)
    holders = [PurePosixPath(path).parent for path in files if path.endswith(".safetensors")]
    if PurePosixPath() not in holders:  # the hub's cache, say, has them under snapshots/
        inside = f", such as {source / min(holders, key=lambda at: len(at.parts))}" if holders else ""
        raise InputError(f"{source} itself holds no .safetensors file", f"give the folder that does{inside}")
    wanted = [file.to or file.path for one in (entry.sources if entry else ()) for file in one.files]
    if missing := [pattern for pattern in wanted if not any(fnmatchcase(path, pattern) for path in files)]:
        # A part may be there in another format, which the engine finds out when it loads.
        logger.warning("%s holds no %s", source, ", ".join(missing))
    check_whole(source)
    locked, done = {}, 0
    total = sum(path.stat().st_size for path in files.values())
    for to, path in files.items():
        progress(to, done, total)
        locked[to] = LockedFile(size=path.stat().st_size, sha256=file_sha256(path))
        done += locked[to].size
    progress("", total, total)
    staging = weights_dir() / PULLING / f"{name}.added"
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    for to, path in files.items():
        if to == LOCK_NAME:  # of the folder's own pull; the new one says what it holds now
            continue
        (staging / to).parent.mkdir(parents=True, exist_ok=True)
        (staging / to).symlink_to(path)
    locked.pop(LOCK_NAME, None)
    write_lock(staging, Lock(added_from=str(source), files=locked))
    staging.rename(target)
    return len(locked)


def remove(name: str) -> int:
    """Delete an installed set, and what a cut pull left of it; the bytes freed. Linked files stay."""
    target, staging = weights_dir() / name, weights_dir() / PULLING / name
    if find_weights(name) != target:
        raise UsageError(f"{name} comes with the package", "`pip uninstall uniavgen` removes both")
    there = [folder for folder in (target, staging) if folder.exists() or folder.is_symlink()]
    if not there:
        raise WeightsError(f"the weights {name} are not installed (looked in {target})", how_to_get(name))
    freed = sum(occupied_bytes(folder) for folder in there)
    for folder in there:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    return freed


def occupied_bytes(folder: Path) -> int:
    """Bytes of the folder's own files; links cost nothing."""
    if folder.is_symlink():
        return 0
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def how_to_get(name: str) -> str:
    """The next thing to do for weights that are not there."""
    entry = registry().get(name)
    if entry is None:
        return f"`uniavgen weights add FOLDER --name {name}` when you have them"
    return entry.by_hand or f"`uniavgen weights pull {name}`, or `uniavgen weights add FOLDER`"


def make_folder(folder: Path) -> None:
    """The folder under `weights_dir()`, made if it can be; OutputError if not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or "no reason given"
        raise OutputError(
            f"the weights' folder {weights_dir()} can't be written: {reason}",
            "name another in UNIAVGEN_WEIGHTS",
        ) from error


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
