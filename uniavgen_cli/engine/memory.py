"""The modes a preset can run in, each with less memory than the last, and what a stage needs in each of them.

What is added up here is counted in `costs.py`, from the preset's configuration and the stages' own code.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from uniavgen_cli.config import Preset
from uniavgen_cli.engine import eight_bit
from uniavgen_cli.engine.streaming import on_device_meanwhile, streamed
from uniavgen_cli.errors import UsageError
from uniavgen_cli.models.state_dict import load_weights
from uniavgen_cli.models.uniavgen import UniAVGen
from uniavgen_cli.runtime import AUTO, Runtime
from uniavgen_cli.shapes import SIZE_MULTIPLE, ClipSpec, fit_size, frames_of_seconds, padded_frames

GIB = 2**30
# Not counted but allowed for, on a GPU: the CUDA context with its libraries, and what the allocator can't use
# of what it holds. Assumed, not measured: no GPU was there.
CONTEXT_BYTES = GIB * 6 // 10
SLACK = 0.10  # of what a stage allocates
# What libraries page in and keep on a CPU: at first, once the model runs, and where a video is read. Measured
# with nano (benchmarks/memory_plan.py, Linux, torch 2.13).
LIBRARY_BYTES, KERNEL_BYTES, MEDIA_BYTES = 12 * 2**20, 20 * 2**20, 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to run; each of MODES needs less memory of the GPU than the one before it."""

    name: str
    about: str
    encoder: str  # "stays" on the GPU, is there "first" and freed, or runs on the "cpu"
    joint: str  # "stays", is there while "sampling", or is "streamed" layer by layer
    tiled: bool = False  # the VAE encodes and decodes tile by tile
    bits: int = 16  # of a weight in the joint model's and the encoder's blocks

    @property
    def runs(self) -> bool:
        """Whether what it needs is installed."""
        return self.bits == 16 or eight_bit.installed()


MODES = (
    Mode(name="resident", about="everything stays on the GPU", encoder="stays", joint="stays"),
    Mode(
        name="encoder-first",
        about="the caption encoder is there first and freed, the joint model while it samples",
        encoder="first",
        joint="sampling",
    ),
    Mode(
        name="tiled",
        about="as encoder-first; the VAE works in tiles, whose seams are blended",
        encoder="first",
        joint="sampling",
        tiled=True,
    ),
    Mode(
        name="8-bit",
        about="as tiled, with 8-bit weights",
        encoder="first",
        joint="sampling",
        tiled=True,
        bits=8,
    ),
    Mode(
        name="streamed",
        about="as tiled; the joint model's layers come from host memory, captions are read on the CPU",
        encoder="cpu",
        joint="streamed",
        tiled=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Bytes: weights of each part, and what each stage allocates beside them."""

    joint: int
    joint_streamed: int  # of it what streaming holds at once
    joint_pinned: int  # of host memory, for streaming
    joint_8bit: int
    encoder: int
    encoder_8bit: int
    vae: int
    vocoder: int
    media: int  # what reading a given video keeps, on a CPU
    mapped: int  # on a CPU, of the joint model's file, whose float32 tensors are read where they are
    captions: int  # from here on allocated by the stages
    captions_8bit: int
    encoding: int
    encoding_tiled: int
    sampling: int
    sampling_8bit: int
    decoding: int
    decoding_tiled: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage needs at its peak, in bytes, and the terms it is counted from."""

    name: str
    gpu: int
    host: int
    how: str


def mode_for(preset: Preset, runtime: Runtime) -> tuple[Mode, str]:
    """The mode a preset runs in, and why: as it says, or the first that holds every task in what is free.

    No reason is given where there is nothing to choose: in host memory, and for nano, which is small.
    Raises OutOfMemoryError when none does.
    """
    if preset.runtime.memory != AUTO:
        return mode_named(preset.runtime.memory), "asked for"
    if runtime.device.value == "cpu" or preset.layout == "nano":
        return MODES[0], ""
    from uniavgen_cli.engine.costs import fitting_mode  # runs the model without values, which takes a while

    return fitting_mode(preset, runtime)


def mode_named(name: str) -> Mode:
    """The mode of that name; raises UsageError, also when what it needs is not installed."""
    for mode in MODES:
        if mode.name == name:
            if not mode.runs:
                raise UsageError(
                    f"the memory mode {name} needs torchao, which is not installed",
                    "pip install 'uniavgen[released]'",
                )
            return mode
    raise UsageError(f"there is no memory mode {name!r}", f"there are {', '.join(m.name for m in MODES)}")


def window(preset: Preset, size: tuple[int, int] | int | None, duration_s: float | None) -> ClipSpec:
    """The clip that is planned for; (height, width) or a short side, and the preset's where not given.

    A preset that starts from a photograph is planned for one of 16:9, others for a square. Raises UsageError.
    """
    clip = preset.clip
    frames = clip.max_frames if duration_s is None else padded_frames(frames_of_seconds(duration_s, clip.fps))
    if not clip.min_frames <= max(frames, clip.min_frames) <= clip.max_frames:
        raise UsageError(
            f"--duration {duration_s:g} is longer than the {clip.max_frames / clip.fps:.2f} s one clip holds",
            "make it in parts",
        )
    if isinstance(size, int | None):
        side = -(-(size or clip.short_side) // SIZE_MULTIPLE) * SIZE_MULTIPLE
        size = fit_size(*((9, 16) if preset.needs_face else (1, 1)), side)
    try:
        return ClipSpec(
            num_frames=max(frames, clip.min_frames),
            height=size[0],
            width=size[1],
            fps=clip.fps,
            sample_rate=clip.sample_rate,
        )
    except ValueError as error:
        raise UsageError(f"--size {size[1]}x{size[0]} can't be made: {error}") from error


def stages(costs: Costs, mode: Mode, device_type: str) -> list[Stage]:
    """Each stage's peak in `mode`; on a CPU everything is host memory."""
    eight = mode.bits == 8
    joint = costs.joint_8bit if eight else costs.joint
    encoder = costs.encoder_8bit if eight else costs.encoder
    codecs = costs.vae + costs.vocoder
    allocated = {
        "captions": costs.captions_8bit if eight else costs.captions,
        "encoding": costs.encoding_tiled if mode.tiled else costs.encoding,
        "sampling": costs.sampling_8bit if eight else costs.sampling,
        "decoding": costs.decoding_tiled if mode.tiled else costs.decoding,
    }
    if device_type == "cpu":
        weights = joint + encoder + codecs
        kept = dict.fromkeys(allocated, costs.mapped + costs.media + LIBRARY_BYTES)
        kept["sampling"] += KERNEL_BYTES
        kept["decoding"] += KERNEL_BYTES
        return [
            Stage(
                name=name,
                gpu=0,
                host=weights + kept[name] + beside,
                how=f"weights {gib(weights)} + allocated {gib(beside)} + files, libraries {gib(kept[name])}",
            )
            for name, beside in allocated.items()
        ]
    # beside the codecs, which stay: the joint model and the caption encoder, each where it is on the GPU
    joint_always = joint if mode.joint == "stays" else 0
    encoder_always = encoder if mode.encoder == "stays" else 0
    there = dict.fromkeys(allocated, codecs + joint_always + encoder_always)
    if mode.encoder == "first":
        there["captions"] += encoder
    if mode.joint != "stays":
        there["sampling"] += costs.joint_streamed if mode.joint == "streamed" else joint
    # in host memory; under streaming the next power of two for every layer's piece
    waiting = {"stays": 0, "sampling": joint, "streamed": costs.joint_pinned}[mode.joint]
    rows = []
    for name, beside in allocated.items():
        on_cpu = name == "captions" and mode.encoder == "cpu"
        gpu = there[name] + CONTEXT_BYTES + (0 if on_cpu else round(beside * (1 + SLACK)))
        how = f"weights {gib(there[name])} + allocated {gib(0 if on_cpu else beside)} + 10 % + context 0.6"
        rows.append(Stage(name=name, gpu=gpu, host=waiting + (encoder + beside if on_cpu else 0), how=how))
    return rows


def choose_mode(costs: Costs, gpu_bytes: int) -> Mode | None:
    """The first mode that runs and whose every stage fits; None when none does."""
    return next((mode for mode in MODES if mode.runs and gpu_peak(costs, mode) <= gpu_bytes), None)


def gpu_peak(costs: Costs, mode: Mode) -> int:
    """The most GPU memory any stage needs."""
    return max(stage.gpu for stage in stages(costs, mode, "cuda"))


def smaller_mode(mode: Mode) -> Mode | None:
    """The next mode down the ladder that runs; None at its end."""
    below = MODES[MODES.index(mode) + 1 :]
    return next((one for one in below if one.runs), None)


def advice(mode: Mode) -> str:
    """What to do when memory ran out in `mode`."""
    smaller = smaller_mode(mode)
    if smaller is None:
        return "take a smaller --size or a shorter clip"
    return f"--set runtime.memory={smaller.name} needs less, as does a smaller --size"


@contextmanager
def apply_mode(model: UniAVGen, mode: Mode, device: str) -> Iterator[None]:
    """The joint model ready to sample on `device` for as long as this lasts, and back where it was after it.

    The model is loaded on the device for a mode whose `joint` "stays", and in host memory for the others.
    """
    if mode.joint == "stays":
        yield
    elif mode.joint == "sampling":
        with on_device_meanwhile(model, device):
            yield
    else:
        with streamed(model, device):
            yield


def joint_home(mode: Mode, device: str) -> str:
    """Where the joint model is loaded to: the device, or host memory that `apply_mode` lends it from."""
    return device if mode.joint == "stays" else "cpu"


def loader(mode: Mode) -> Callable[..., None]:
    """What fills the joint model and the released caption encoder with their weights."""
    return eight_bit.load_weights if mode.bits == 8 else load_weights


def encoder_home(mode: Mode, device: str) -> str:
    """Where the caption encoder runs."""
    return "cpu" if mode.encoder == "cpu" else device


def tile(video_vae: Any, mode: Mode) -> None:
    """Let a VAE that can work in tiles do so in a mode that asks for it; nano's needs no tiles."""
    inner: Any = getattr(video_vae, "vae", None)
    if mode.tiled and hasattr(inner, "enable_tiling"):
        inner.enable_tiling()


def give_back_freed() -> None:
    """Let glibc give freed memory of 1 MiB and more back to the system at once; elsewhere nothing.

    By itself it learns to keep pieces of up to 32 MiB, and nano's peak was 175 to 200 MiB instead of 158.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2**20)  # M_MMAP_THRESHOLD of malloc.h


def gib(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
