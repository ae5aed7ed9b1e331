"""What the vocoder learns from: voices larger, smaller and in noise, and mels as a generator gives them."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from uniavgen_cli.codecs import mel
from uniavgen_cli.codecs.vocoder import PITCH_MAX_HZ, PITCH_MIN_HZ, Vocoder, VocoderConfig, synthesise
from uniavgen_cli.data.voice import PROSODY, resample, sample_sentence, sample_voice, speak
from uniavgen_cli.training.trainer import Batch, Stage

NUM_CLIPS = 800  # sentences; crops, loudness, noise and damage differ every time
TOKENS = 64  # mel frames of a sample
SAMPLES = TOKENS * mel.HOP
RESOLUTIONS = ((512, 0.7), (2048, 1.0))  # window, weight; the mel stands between them
_SIZES = (0.84, 0.92, 1.0, 1.0, 1.0, 1.1, 1.2)  # of the speaker: pitch, formants and speed together


def vocoder_stage(
    config: VocoderConfig,
    *,
    steps: int = 2000,
    lr: float = 1.5e-3,
    batch_size: int = 8,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Stage:
    """The stage that trains a vocoder of `config` from nothing."""
    torch.manual_seed(seed)
    return Stage(
        name="vocoder",
        module=Vocoder(config),
        batch=lambda step: batch(step, batch_size=batch_size, seed=seed),
        loss=loss,
        export=lambda weights, folder: export(weights, folder / "vocoder.safetensors"),
        steps=steps,
        lr=lr,
        warmup=40,
        dtype=dtype,
    )


def export(weights: dict[str, Tensor], path: Path) -> None:
    """Save the weights in bfloat16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.bfloat16().contiguous() for name, value in weights.items()}, path)


def batch(step: int, *, batch_size: int = 8, seed: int = 0) -> Batch:
    """Sound (b, 15360), its damaged mel (b, 64, 80), pitch in Hz (b, 64; 0: none), noise for the source."""
    rng = np.random.default_rng([seed, step])
    samples, pitches = [], []
    for index in rng.integers(NUM_CLIPS, size=batch_size).tolist():
        clip, pitch = _clip(seed, index)
        start = int(rng.integers(-10, max(1, len(pitch) + 10 - TOKENS)))
        first, last = max(0, start), min(len(pitch), start + TOKENS)
        piece, pitch_piece = np.zeros(SAMPLES, np.float32), np.zeros(TOKENS, np.float32)
        piece[(first - start) * mel.HOP : (last - start) * mel.HOP] = clip[first * mel.HOP : last * mel.HOP]
        pitch_piece[first - start : last - start] = pitch[first:last]
        piece *= np.float32(np.exp(rng.uniform(-1.2, 0)))
        if rng.random() < 0.3:  # rooms are not silent
            piece += _room(rng, SAMPLES)
        samples.append(piece)
        pitches.append(pitch_piece)
    waveform = torch.from_numpy(np.stack(samples))
    clean = mel.normalize(mel.log_mel(waveform))
    return {
        "waveform": waveform,
        "mels": torch.stack([_damaged(row, rng) for row in clean]),
        "pitch_hz": torch.from_numpy(np.stack(pitches)),
        "noise": torch.from_numpy(rng.standard_normal((batch_size, SAMPLES), np.float32)),
    }


def loss(module: torch.nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
    """Spectra at two resolutions, the mel, and the pitch, each (b,); the source sounds at the true pitch."""
    assert isinstance(module, Vocoder)
    waveform, pitch_hz = batch["waveform"], batch["pitch_hz"]
    voicing = module(batch["mels"])
    with torch.autocast(waveform.device.type, enabled=False):
        sound = synthesise(voicing, filled_pitch(pitch_hz), batch["noise"])
        losses = {
            "mel": 2 * (mel.log_mel(sound) - mel.log_mel(waveform)).abs().mean((1, 2)),
            "pitch": 0.2 * pitch_loss(voicing.pitch_logits, pitch_hz, module.pitch_hz),
        }
        for window, weight in RESOLUTIONS:
            log_error, convergence = _spectral_errors(sound, waveform, window)
            losses[f"stft{window}"] = weight * (log_error + convergence)
    return losses


def pitch_loss(logits: Tensor, pitch_hz: Tensor, classes_hz: Tensor) -> Tensor:
    """Cross-entropy (b,) against a bump of a class's width around the true pitch, over voiced frames."""
    voiced = pitch_hz > 0
    distance = classes_hz.log() - pitch_hz.clamp_min(1).log()[..., None]
    step = (classes_hz[1] / classes_hz[0]).log()
    target = torch.exp(-0.5 * (distance / step).square())
    target = target / target.sum(-1, keepdim=True).clamp_min(1e-6)
    entropy = -(target * logits.log_softmax(-1)).sum(-1)
    return (entropy * voiced).sum(1) / voiced.sum(1).clamp_min(1)


def filled_pitch(pitch_hz: Tensor) -> Tensor:
    """`pitch_hz` (b, t) with unvoiced gaps bridged in a straight line; 120 Hz where nothing is voiced."""
    filled = []
    for row in pitch_hz.cpu().numpy():
        known = np.flatnonzero(row)
        line = np.interp(np.arange(len(row)), known, row[known]) if len(known) else np.full(len(row), 120.0)
        filled.append(line.astype(np.float32))
    return torch.from_numpy(np.stack(filled)).to(pitch_hz.device)


def track_pitch(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pitch in Hz at the centre of each 10 ms, 0 where there is none, of mono 24 kHz samples.

    Autocorrelation over 50 ms, corrected for its window, and the best path through it (Boersma 1993).
    """
    num_tokens = len(samples) // mel.HOP
    size = 1200
    margin = (size - mel.HOP) // 2
    padded = np.pad(samples, (margin, margin + mel.HOP))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, size)[:: mel.HOP][:num_tokens]
    window = np.hanning(size)
    spectra = np.abs(np.fft.rfft((pieces - pieces.mean(1, keepdims=True)) * window, 2048)) ** 2
    spectra /= 1 + (np.arange(1025) * mel.SAMPLE_RATE / 2048 / 900) ** 4  # the low harmonics tell the pitch
    correlation = np.fft.irfft(spectra)[:, : size // 2]
    of_window = np.fft.irfft(np.abs(np.fft.rfft(window, 2048)) ** 2)[: size // 2]
    power = correlation[:, :1] + 1e-4  # quiet frames count as unvoiced
    correlation = correlation / power * (of_window[0] / of_window)
    hz = np.exp(np.linspace(np.log(PITCH_MIN_HZ), np.log(PITCH_MAX_HZ), 108))
    lags = mel.SAMPLE_RATE / hz
    whole = np.floor(lags).astype(int)
    strength = correlation[:, whole] * (1 - (lags - whole)) + correlation[:, whole + 1] * (lags - whole)
    steps = np.abs(np.subtract.outer(np.log2(hz), np.log2(hz)))
    path = _best_path(strength + 0.03 * np.log2(hz / PITCH_MIN_HZ), 2.0 * steps)
    rows = np.arange(num_tokens)
    pitch = _refined(correlation, lags[path])
    return np.where(strength[rows, path] > 0.5, pitch, 0).astype(np.float32)


def _best_path(score: NDArray[np.float64], cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """The states whose summed score less the cost of moving is highest (Viterbi)."""
    best = score[0]
    came_from = np.zeros(score.shape, np.int64)
    for t in range(1, len(score)):
        moves = best[:, None] - cost
        came_from[t] = moves.argmax(0)
        best = moves[came_from[t], np.arange(len(best))] + score[t]
    path = np.empty(len(score), np.int64)
    path[-1] = best.argmax()
    for t in range(len(score) - 1, 0, -1):
        path[t - 1] = came_from[t, path[t]]
    return path


def _refined(correlation: NDArray[np.float64], lags: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pitch in Hz from the top of the parabola through the correlation's peak within 2 % of each lag."""
    rows = np.arange(len(lags))
    reach = 8
    around = np.rint(lags).astype(int)[:, None] + np.arange(-reach, reach + 1)
    values = np.where(np.abs(around / lags[:, None] - 1) < 0.025, correlation[rows[:, None], around], -np.inf)
    peak = around[rows, values.argmax(1)]
    left, middle, right = (correlation[rows, peak + offset] for offset in (-1, 0, 1))
    bend = 2 * middle - left - right
    shift = np.where(bend > 1e-9, 0.5 * (right - left) / np.maximum(bend, 1e-9), 0)
    return mel.SAMPLE_RATE / (peak + np.clip(shift, -1, 1))


@lru_cache(maxsize=NUM_CLIPS)
def _clip(seed: int, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One sentence at full loudness, the speaker made smaller or larger, and its pitch a mel frame."""
    rng = np.random.default_rng([seed, 1, index])
    samples = speak(sample_sentence(rng), sample_voice(rng), str(rng.choice(list(PROSODY)))).samples
    size = float(rng.choice(_SIZES))
    samples = resample(samples, round(mel.SAMPLE_RATE * size / 240) * 240, mel.SAMPLE_RATE)
    samples = samples * (mel.PEAK / max(1e-8, float(np.abs(samples).max())))
    samples = np.pad(samples, (0, -len(samples) % mel.HOP)).astype(np.float32)
    return samples, track_pitch(samples)


def _room(rng: np.random.Generator, length: int) -> NDArray[np.float32]:
    """Coloured noise at -65 to -30 dB."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum *= np.maximum(np.arange(len(spectrum)), 40) ** -rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, length)
    level = 10 ** (rng.uniform(-65, -30) / 20)
    return (noise * (level / noise.std())).astype(np.float32)


def _damaged(mels: Tensor, rng: np.random.Generator) -> Tensor:
    """A mel (t, 80) as a generator would give it: half the time untouched, else blurred, noisy or both."""
    if rng.random() < 0.5:
        return mels
    blurred = mels
    if rng.random() < 0.6:
        share = rng.uniform(0, 1)
        blurred = torch.lerp(mels, F.avg_pool2d(mels[None], 3, 1, 1, count_include_pad=False)[0], share)
    noise = rng.standard_normal(mels.shape, np.float32) * np.float32(rng.uniform(0, 0.35))
    return blurred + torch.from_numpy(noise)


def _spectral_errors(sound: Tensor, target: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean difference of log magnitudes and relative difference of magnitudes, each (b,)."""

    def magnitude(x: Tensor) -> Tensor:
        taper = torch.hann_window(window, device=x.device)
        spectrum = torch.stft(x, window, window // 4, window=taper, return_complex=True)
        return torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-7)

    made, wanted = magnitude(sound), magnitude(target)
    log_error = (made.log() - wanted.log()).abs().mean((1, 2))
    difference = (made - wanted).square().sum((1, 2)).sqrt()
    return log_error, difference / (wanted.square().sum((1, 2)).sqrt() + 1.0)
