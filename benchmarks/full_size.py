"""What a sampling step of the full-size joint model costs: counted anywhere, or measured on a GPU.

    python benchmarks/full_size.py --count
    python benchmarks/full_size.py [--repeats 3] [--device cuda] [--size 736x1312 --size 480x832]

Needs torch alone. Weights and inputs are random; a step is both passes of the guidance, and its figures are
the mean of one before and one after the unconditional branches are joined again. --count runs the same code
without values and prints exact operations and bytes. Without it every number is measured, and the share of
the matrix rate is of the one measured in the same run. `--config tiny` is for trying the script out on a CPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import textbook  # noqa: E402

from uniavgen_cli.diffusion.guidance import Guidance, Pass, guided  # noqa: E402
from uniavgen_cli.diffusion.sampler import Given, State  # noqa: E402
from uniavgen_cli.engine import eight_bit  # noqa: E402
from uniavgen_cli.engine.counting import count, with_shapes_only, without_values  # noqa: E402
from uniavgen_cli.engine.streaming import streamed  # noqa: E402
from uniavgen_cli.engine.tasks import TASKS, Task  # noqa: E402
from uniavgen_cli.models.uniavgen import Conditions, UniAVGen, UniAVGenConfig  # noqa: E402
from uniavgen_cli.shapes import ClipSpec, latent_frames_of, tokens_of_frames  # noqa: E402

CONFIGS = {
    "full": dict(  # as presets/uniavgen.yaml has it
        video_dim=3072, video_heads=24, video_ffn_dim=14336,
        audio_dim=1536, audio_heads=12, audio_ffn_dim=8960, num_blocks=30,
        interaction_blocks=tuple(range(0, 30, 2)), freq_dim=256, caption_dim=4096, caption_tokens=512,
        speech_vocab=2545, speech_text_dim=512, speech_conv_blocks=4,
        video_latent_channels=48,
    ),
    "tiny": dict(
        video_dim=48, video_heads=2, video_ffn_dim=64, audio_dim=24, audio_heads=2, audio_ffn_dim=32,
        num_blocks=6, interaction_blocks=(0, 2, 4), freq_dim=16, caption_dim=8, caption_tokens=6,
        speech_vocab=20, speech_text_dim=16, speech_conv_blocks=1, video_latent_channels=4,
    ),
}  # fmt: skip
SIZES = {"full": ("736x1312", "480x832"), "tiny": ("64x96",)}
FRAMES = {"full": 81, "tiny": 17}
SKIP_BLOCK = {"full": 11, "tiny": 3}
GUIDANCE = {"video_scale": 3.0, "audio_scale": 2.0, "modality_fraction": 0.5}
VIDEO_PARTS = ("blocks.", "head.", "patch", "text_embedding_video.", "time_embedding.", "time_projection.")
FLOAT32_PARTS = ("time_", "modulation", "norm")  # of weights' names, as models/state_dict.py has them
TIMES = (1000.0, 500.0, 0.0)  # two steps: one before and one after modality-aware guidance joins the branches
CONTEXT_FRAMES = 37  # of a clip that goes on
REFERENCE_S = 5.36  # of a voice, with its silence
SPEECH_TOKENS = 100


@dataclass(frozen=True, kw_only=True)
class Work:
    """One task at one size: what the sampler is given."""

    row: Task
    spec: ClipSpec
    config: UniAVGenConfig
    skip_block: int
    device: str

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)

    def given(self) -> Given:
        spec, channels = self.spec, self.config.video_latent_channels
        grid = (spec.latent_height, spec.latent_width)
        context = min(CONTEXT_FRAMES, spec.num_frames - 4)
        frames = {"first": 1, "part": latent_frames_of(context), "all": spec.latent_frames}
        tokens = {
            "none": 0,
            "part": tokens_of_frames(context, spec.fps, spec.mel_hz),
            "all": spec.audio_tokens,
        }
        video = self.tensor(1, channels, frames[self.row.given_video], *grid)
        audio = tokens[self.row.given_audio]
        voice = round(REFERENCE_S * spec.mel_hz) if self.row.reference_voice else 0
        return Given(
            reference_frame=video[:, :, :1],
            video=video,
            reference_audio=self.tensor(1, voice, self.config.mel_bins) if voice else None,
            audio=self.tensor(1, audio, self.config.mel_bins) if audio else None,
        )

    def state(self) -> State:
        spec = self.spec
        grid = (spec.latent_frames, spec.latent_height, spec.latent_width)
        return State(
            self.tensor(1, self.config.video_latent_channels, *grid),
            self.tensor(1, spec.audio_tokens, self.config.mel_bins),
        )

    def conditions(self, length: int) -> Conditions:
        config = self.config
        return Conditions(
            caption=self.tensor(1, config.caption_tokens, config.caption_dim),
            speech=torch.zeros(1, length, dtype=torch.int64, device=self.device),
            speech_lengths=(length,),
        )

    def steps(self, model: Any, *, batched: bool) -> list[Callable[[], State]]:
        """A step before and one after modality-aware guidance ends."""
        row, state = self.row, self.state()
        denoise = guided(
            model,
            Guidance(skip_block=self.skip_block, **GUIDANCE),
            TIMES,
            self.given(),
            Pass(conditions=self.conditions(SPEECH_TOKENS), a2v=row.a2v, v2a=row.v2a),
            Pass(conditions=self.conditions(10), a2v=row.negative_a2v, v2a=row.negative_v2a),
            batched=batched,
        )
        return [lambda t=t: denoise(state, t) for t in TIMES[:-1]]  # type: ignore[misc]


def held_as(name: str, tensor: Tensor) -> torch.dtype:
    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if any(part in name for part in (*FLOAT32_PARTS, "row_scale")) else torch.bfloat16


def build(config: UniAVGenConfig, attention: str = "sdpa", *, eight_bits: bool = False) -> UniAVGen:
    with torch.device("meta"):
        model = UniAVGen(config, attention).eval()
        if eight_bits:
            eight_bit.make_room(model, torch.bfloat16)
    return model


def fill(model: nn.Module, device: str) -> None:
    """Random weights in bfloat16, or in 8 bits, each made where it is to be."""
    for prefix, part in model.named_modules():
        for store in (part._parameters, part._buffers):
            for key, tensor in list(store.items()):
                if tensor is not None:
                    kind = held_as(f"{prefix}.{key}", tensor)
                    values = torch.empty(tensor.shape, dtype=kind, device=device)
                    if kind.is_floating_point:
                        values.normal_(mean=float(key == "weight" and tensor.ndim == 1), std=0.02)
                    else:
                        values.random_(-127, 128)
                    store[key] = nn.Parameter(values, False) if isinstance(tensor, nn.Parameter) else values


class Textbook:
    """The model as its formulas read, called as the model is; one sample at a time."""

    def __init__(self, model: UniAVGen) -> None:
        self.model = model

    def __call__(self, *inputs: Any) -> Any:
        return textbook.forward(self.model, *inputs)


# ---- counted -----------------------------------------------------------------------------------------------


def counted(name: str, spec: ClipSpec, tasks: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each task as it is run, and `generate` as one batch and in the textbook's form."""
    cases = [(task, "ours") for task in tasks] + [("generate", "ours, one batch"), ("generate", "textbook")]
    for task, form in cases:
        flops, attention, peak = count_case(name, spec, task, form)
        tflop = {"tflop_a_step": flops / 1e12, "of_it_attention": attention / 1e12}
        yield {"task": task, "form": form, **tflop, "peak_gib_beside_weights": peak / 2**30}


def count_case(
    name: str, spec: ClipSpec, task: str, form: str, pairs: tuple[int, int] | None = (1, 2)
) -> tuple[float, float, float]:
    """Operations, those of attention, and peak bytes of a step.

    The blocks come in pairs, the first of each with an interaction after it, and pairs are alike; so all of
    them follow from a count with `pairs[0]` of them and one with `pairs[1]`. None counts them all.
    """
    total = CONFIGS[name]["num_blocks"] // 2  # type: ignore[operator]
    few, more = (_count_pairs(name, spec, task, form, n) for n in pairs or (total, total))
    share = (total - pairs[0]) / (pairs[1] - pairs[0]) if pairs else 0
    flops, attention, peak = (a + share * (b - a) for a, b in zip(few, more, strict=True))
    return flops, attention, peak


def _count_pairs(name: str, spec: ClipSpec, task: str, form: str, pairs: int) -> tuple[float, float, float]:
    blocks = {"num_blocks": 2 * pairs, "interaction_blocks": tuple(range(0, 2 * pairs, 2))}
    config = UniAVGenConfig(**{**CONFIGS[name], **blocks})  # type: ignore[arg-type]
    with without_values(), torch.autocast("cpu", torch.bfloat16):
        model = with_shapes_only(build(config), held_as)
        called: Any = Textbook(model) if form == "textbook" else model  # type: ignore[arg-type]
        work = Work(row=TASKS[task], spec=spec, config=config, skip_block=1, device="cpu")
        both = [count(step) for step in work.steps(called, batched=form == "ours, one batch")]
    return (
        sum(one.flops for one in both) / 2,
        sum(_attention_flops(one.flops_by_kind) for one in both) / 2,
        max(one.peak_bytes for one in both),
    )


def _attention_flops(kinds: dict[str, int]) -> int:
    return sum(flops for kind, flops in kinds.items() if "attention" in kind)


def weight_bytes(name: str) -> dict[str, Any]:
    """Parameters of each part of the model, and bytes in bfloat16 but for what stays float32."""
    model = build(UniAVGenConfig(**CONFIGS[name]))  # type: ignore[arg-type]
    parts = {"video branch": [0, 0], "audio branch": [0, 0], "interaction": [0, 0]}
    for key, tensor in model.named_parameters():
        part = "video branch" if key.startswith(VIDEO_PARTS) else "audio branch"
        part = "interaction" if key.startswith(("a2v", "v2a")) else part
        parts[part][0] += tensor.numel()
        parts[part][1] += tensor.numel() * held_as(key, tensor).itemsize
    whole = [sum(column) for column in zip(*parts.values(), strict=True)]
    return {
        part: {"parameters": n, "bytes": size} for part, (n, size) in {"joint model": whole, **parts}.items()
    }


# ---- measured ----------------------------------------------------------------------------------------------


@contextmanager
def ready(model: UniAVGen, mode: str, device: str) -> Iterator[None]:
    with streamed(model, device) if mode == "streamed" else nullcontext():
        yield


def seconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """The shortest of the repeats, after one to warm up."""
    times = []
    for _ in range(1 + repeats):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def matrix_rate(device: str, side: int) -> float:
    """TFLOP a second of one large bfloat16 product."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, 10) / 1e12


def measured(
    name: str, spec: ClipSpec, tasks: Sequence[str], device: str, repeats: int
) -> Iterator[dict[str, Any]]:
    """A row a case; what does not fit the device has no figures."""
    # the modes and kernels are compared at `generate`, whether it was asked for or not
    flops = {
        (row["task"], row["form"]): row["tflop_a_step"]
        for row in counted(name, spec, list(dict.fromkeys([*tasks, "generate"])))
    }
    rate = matrix_rate(device, 8192 if name == "full" else 256)
    cases = [(task, "ours", "resident", "sdpa") for task in tasks]
    cases += [
        ("generate", "ours, one batch", "resident", "sdpa"),
        ("generate", "textbook", "resident", "sdpa"),
    ]
    cases += [("generate", "ours", mode, "sdpa") for mode in ("8-bit", "streamed")]
    if _xformers_works(device):
        cases += [("generate", "ours", "resident", "xformers")]
    config = UniAVGenConfig(**CONFIGS[name])  # type: ignore[arg-type]
    for mode, attention in dict.fromkeys((mode, attention) for _, _, mode, attention in cases):
        model = _filled(config, mode, attention, device)
        for task, form in [case[:2] for case in cases if case[2:] == (mode, attention)]:
            row: dict[str, Any] = {"task": task, "form": form, "mode": mode, "attention": attention}
            work = Work(row=TASKS[task], spec=spec, config=config, skip_block=SKIP_BLOCK[name], device=device)
            found = _measure(model, work, form, mode, repeats) if model is not None else None
            if found is None:
                yield row | {"seconds": None}
                continue
            step_s, peak = found
            yield row | {
                "seconds": step_s,
                "peak_gib": peak,
                "share_of_matrix_rate": flops[task, form] / step_s / rate,
                "matrix_tflop_s": rate,
            }
        del model  # one of them fills the device


def _filled(config: UniAVGenConfig, mode: str, attention: str, device: str) -> UniAVGen | None:
    """A model with random weights where the mode has them; None when the device is too small."""
    model = build(config, attention, eight_bits=mode == "8-bit")
    try:
        fill(model, "cpu" if mode == "streamed" else device)
    except torch.OutOfMemoryError:
        return None
    return model


def _measure(model: UniAVGen, work: Work, form: str, mode: str, repeats: int) -> tuple[float, Any] | None:
    """Seconds a step and the peak in GiB, which a CPU does not tell; None when the device is too small.

    A function of its own, so that nothing of one case is left on the device for the next.
    """
    device = work.device
    autocast: AbstractContextManager[Any] = torch.autocast(torch.device(device).type, torch.bfloat16)
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with torch.inference_mode(), autocast, ready(model, mode, device), torch.device(device):
            called: Any = Textbook(model) if form == "textbook" else model
            steps = work.steps(called, batched=form == "ours, one batch")
            step_s = sum(seconds(step, device, repeats) for step in steps) / len(steps)
    except torch.OutOfMemoryError:
        return None
    return step_s, torch.cuda.max_memory_allocated(device) / 2**30 if device != "cpu" else None


def _xformers_works(device: str) -> bool:
    if device == "cpu":
        return False
    try:
        from xformers import ops

        x = torch.ones(1, 8, 1, 64, device=device, dtype=torch.bfloat16)
        ops.memory_efficient_attention(x, x, x)
    except (ImportError, OSError, RuntimeError, NotImplementedError, ValueError):
        return False
    return True


def _xformers_version() -> str | None:
    try:
        return version("xformers")
    except PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a step of the full-size joint model costs.")
    parser.add_argument("--count", action="store_true", help="operations and bytes, without a GPU")
    parser.add_argument("--config", choices=CONFIGS, default="full")
    parser.add_argument("--size", action="append", help="HEIGHTxWIDTH; may be repeated")
    parser.add_argument("--task", action="append", choices=TASKS, help="may be repeated; else five of them")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    about = {"torch": torch.__version__, "config": given.config, "frames": FRAMES[given.config]}
    if not given.count and given.device != "cpu":
        if not torch.cuda.is_available():
            parser.error(
                "there is no CUDA device: --count needs none, --config tiny --device cpu tries it out"
            )
        about |= {
            "device": torch.cuda.get_device_name(given.device),
            "cuda": torch.version.cuda,
            "xformers": _xformers_version(),
        }
    print(json.dumps({**about, **weight_bytes(given.config)}))
    tasks = given.task or [name for name in TASKS if "-" not in name or name == "generate-voice"]
    for size in given.size or SIZES[given.config]:
        height, width = map(int, size.split("x"))
        spec = ClipSpec(num_frames=FRAMES[given.config], height=height, width=width)
        if given.count:
            rows = counted(given.config, spec, tasks)
        else:
            rows = measured(given.config, spec, tasks, given.device, given.repeats)
        for row in rows:
            print(json.dumps({"size": size, **row}), flush=True)


if __name__ == "__main__":
    main()
