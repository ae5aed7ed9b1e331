"""`uniavgen doctor`: what will run where, and why; each optional part found, or how to get it."""

import importlib.util
import os
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING

from uniavgen_cli import __version__
from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output
from uniavgen_cli.errors import UniAVGenError, WeightsError

if TYPE_CHECKING:
    from uniavgen_cli.config import Preset

Row = tuple[str, str, str]  # state (ok, none or FAIL), what, how it is

OPTIONAL = {  # package -> what it is for, and the extra that brings it
    "xformers": ("attention on CUDA; without it torch's own", "cuda"),
    "torchaudio": ("sound on CUDA; without it our own mel", "cuda"),
    "transformers": ("caption encoder and vocoder of the released checkpoint", "released"),
    "diffusers": ("video VAE of the released checkpoint", "released"),
    "pypinyin": ("Chinese speech text", "zh"),
}


def doctor(
    preset: o.PresetOption = o.DEFAULT_PRESET, set: o.SetOption = None, json: o.JsonOption = False
) -> None:
    """Say what will run where, and why; name each optional part, or how to get it.

    \b
    Examples:
      uniavgen doctor
      uniavgen doctor --preset nano --json
    """
    from uniavgen_cli.config import load_preset

    chosen = load_preset(preset, set or ())
    rows = [*_machine(), *_torch(chosen), *_media(), *_weights(chosen), *_optional()]
    if json:
        _output.data_json(
            {"checks": [{"state": state, "what": what, "how": how} for state, what, how in rows]}
        )
    else:
        _output.table(rows)
    if failed := [what for state, what, _ in rows if state == "FAIL"]:
        kind = WeightsError if failed == ["weights"] else UniAVGenError
        raise kind(f"not in order: {', '.join(failed)}", "the lines that begin with FAIL say more")


def _machine() -> Iterator[Row]:
    yield (
        "ok",
        "uniavgen",
        f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "ok", "processor", f"{cores} cores"


def _torch(preset: "Preset") -> Iterator[Row]:
    import torch

    from uniavgen_cli import runtime

    yield "ok", "torch", torch.__version__
    try:
        wanted = preset.runtime
        chosen = runtime.choose(wanted.device, wanted.dtype, wanted.attention)
    except UniAVGenError as error:
        yield "FAIL", "runtime", str(error)
        return
    for what in ("device", "dtype", "attention"):
        choice = getattr(chosen, what)
        yield "ok", what, f"{choice.value}: {choice.reason}"
    yield "ok", "memory", f"{chosen.memory_bytes / 2**30:.1f} GiB free on the device"


def _media() -> Iterator[Row]:
    from uniavgen_cli.media.ffmpeg import find_ffmpeg

    try:
        yield "ok", "ffmpeg", f"{find_ffmpeg()}; files are looked into with PyAV, so no ffprobe is needed"
    except UniAVGenError as error:
        yield "FAIL", "ffmpeg", str(error)
    from uniavgen_cli.media.face import describe_detectors

    for what, how in describe_detectors().items():
        yield "none" if how.startswith("not used") else "ok", f"faces: {what}", how
    for package, what in (("espeakng-loader", "eSpeak NG"), ("opencv-python", "OpenCV"), ("av", "PyAV")):
        found = _version(package)
        yield ("ok", what, found) if found else ("FAIL", what, f"pip install {package}")


def _weights(preset: "Preset") -> Iterator[Row]:
    from uniavgen_cli.config import weights_folder

    try:
        yield "ok", "weights", f"{preset.name}: {weights_folder(preset)}"
    except UniAVGenError as error:
        yield "FAIL", "weights", str(error)


def _optional() -> Iterator[Row]:
    for package, (purpose, extra) in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            yield "none", package, f"{purpose}; pip install 'uniavgen[{extra}]'"
            continue
        try:  # installed is not enough: a build for another torch fails here, and not only with ImportError
            importlib.import_module(package)
            yield "ok", package, f"{_version(package)}, {purpose.partition(';')[0]}"
        except (ImportError, OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield "FAIL", package, f"installed and can't be loaded ({reason}); pip uninstall {package}"


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
