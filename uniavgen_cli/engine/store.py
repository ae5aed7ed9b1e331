"""The windows of a long clip as they are made: on disk, where memory stays small and a killed run goes on."""

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from uniavgen_cli import __version__
from uniavgen_cli.diffusion.sampler import State
from uniavgen_cli.engine.provenance import digest
from uniavgen_cli.media.scratch import scratch_folder


def key_of(content: Mapping[str, Any], runtime: Mapping[str, str]) -> str:
    """What windows of one clip have in common, whatever its seed: all that decides their bytes."""
    return digest({"content": content, "runtime": runtime, "uniavgen": __version__})[:20]


def kept_seed(parent: Path, key: str) -> int | None:
    """The seed of a clip that was begun in `parent` and not ended; None when there is none."""
    for folder in sorted(parent.glob(f".uniavgen-{key}-*")):
        if (match := re.fullmatch(rf"\.uniavgen-{key}-(\d+)", folder.name)) and _files(folder):
            return int(match[1])
    return None


class Store:
    """The states of the windows made so far, video latents and mels in float16.

    They lie in a hidden folder of `parent`, which a later run of the same clip takes up; without a parent, or
    while another process makes the same clip there, in a temporary one.
    """

    def __init__(self, parent: Path | None, key: str, seed: int) -> None:
        self._temporary: ExitStack | None = None
        self._lock: int | None = None
        if parent is not None:
            self.folder = parent / f".uniavgen-{key}-{seed}"
            self._lock = _locked(self.folder)
        if self._lock is None:
            self._temporary = ExitStack()
            self.folder = self._temporary.enter_context(scratch_folder())
        self.count = 0  # windows that are whole
        while self._whole(self.count):
            self.count += 1

    @property
    def stays(self) -> bool:
        """Whether a later run finds it."""
        return self._temporary is None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> State:
        if not 0 <= index < self.count:
            raise IndexError(index)
        tensors = load(self._path(index).read_bytes())
        return State(tensors["video"].float(), tensors["audio"].float())

    def append(self, state: State) -> State:
        """Keep the next window; the state as it will be read again. Raises OSError on a full disk."""
        data = save(
            {
                "video": state.video.to(torch.float16).cpu().contiguous(),
                "audio": state.audio.to(torch.float16).cpu().contiguous(),
            }
        )
        path = self._path(self.count)
        fresh = path.with_suffix(".part")
        try:
            fresh.write_bytes(data)
            os.replace(fresh, path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        self.count += 1
        return self[self.count - 1]

    def close(self, *, done: bool) -> None:
        """Let go of the folder; of a clip that is `done` nothing stays."""
        if self._temporary is not None:
            self._temporary.close()
        elif done or not self.count:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"

    def _whole(self, index: int) -> bool:
        try:
            load(self._path(index).read_bytes())
        except (OSError, SafetensorError):  # missing, or cut off by a power failure
            return False
        return True


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("*.safetensors"))


def _locked(folder: Path) -> int | None:
    """A lock on the folder, made if need be; None when another process has it, or there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_ino == folder.stat().st_ino:  # not one that its owner has just removed
            return handle
    except OSError:
        pass
    with suppress(OSError):
        os.close(handle)
    return None
