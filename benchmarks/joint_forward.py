"""Time and peak memory of one forward of the joint model, against its textbook form (tests/textbook.py).

    python benchmarks/joint_forward.py [--repeats 5] [--device cpu]

Both run in this one process, in turns; the time is the shortest of the repeats. On a CPU each peak is
measured in a child process of its own, as what its resident memory grows by during the forward.
"""

import argparse
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import textbook  # noqa: E402

from uniavgen_cli.models.uniavgen import (  # noqa: E402
    AudioStream,
    Conditions,
    JointOutput,
    Switches,
    UniAVGen,
    UniAVGenConfig,
    VideoStream,
)

CONFIG = UniAVGenConfig(
    video_dim=512,
    video_heads=4,
    video_ffn_dim=2048,
    audio_dim=256,
    audio_heads=2,
    audio_ffn_dim=1024,
    num_blocks=8,
    interaction_blocks=(0, 2, 4, 6),
    freq_dim=256,
    caption_dim=128,
    caption_tokens=16,
    speech_vocab=128,
    speech_text_dim=128,
    speech_conv_blocks=2,
    video_latent_channels=48,
)
FRAMES, SIDE, TOKENS = 21, 16, 506
FORMS = ("ours", "textbook")


def build(form: str) -> Callable[[], JointOutput]:
    """A call that runs one forward of either form, weights and inputs random and the same for both."""
    torch.manual_seed(0)
    model = UniAVGen(CONFIG).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.02)
    times = torch.full((1, 1 + FRAMES), 700.0)
    times[:, :2] = 0  # the reference frame and the given first one
    inputs = (
        VideoStream(
            latents=torch.randn(1, CONFIG.video_latent_channels, 1 + FRAMES, SIDE, SIDE),
            timesteps=times,
            num_reference=1,
            num_given=1,
        ),
        AudioStream(mels=torch.randn(1, TOKENS, CONFIG.mel_bins), timesteps=torch.full((1, TOKENS), 700.0)),
        Conditions(
            caption=torch.randn(1, CONFIG.caption_tokens, CONFIG.caption_dim),
            speech=torch.randint(0, CONFIG.speech_vocab, (1, 40)),
            speech_lengths=(40,),
        ),
    )
    switches = Switches(a2v=(True,), v2a=(True,))
    if form == "ours":
        return lambda: model(*inputs, switches)
    return lambda: textbook.forward(model, *inputs, switches)


def seconds(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mib(form: str, device: str) -> float:
    if device != "cpu":
        call = build(form)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.inference_mode():
            call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_resident_growth, (form,))


def _resident_growth(form: str) -> float:
    call = build(form)
    highest = before = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with torch.inference_mode():
        call()
    done.set()
    watcher.join()
    return (highest - before) / 2**20


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description="One forward of the joint model, against the textbook form.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    torch.set_default_device(arguments.device)
    calls = {form: build(form) for form in FORMS}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    with torch.inference_mode():
        outputs = [call() for call in calls.values()]  # warms up, too
        for _ in range(arguments.repeats):
            for form, call in calls.items():
                times[form].append(seconds(call, arguments.device))
    ours, theirs = (torch.cat([x.flatten() for x in vars(out).values()]) for out in outputs)
    apart = (ours - theirs).abs().max().item()
    del calls
    memory = {form: peak_mib(form, arguments.device) for form in FORMS}
    for form in FORMS:
        print(f"{form:9} {min(times[form]):7.3f} s  {memory[form]:7.0f} MiB over the weights")
    print(
        f"textbook / ours: {min(times['textbook']) / min(times['ours']):.2f} in time, "
        f"{memory['textbook'] / memory['ours']:.2f} in memory; outputs differ by {apart:.1e}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
