"""Log-mel spectrograms as the model reads them: 80 Slaney bins at 100 Hz from 24 kHz sound.

Source: the released UniAVGen inference model (F5-TTS features); 0..8000 Hz, natural logarithm, magnitude.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE_RATE = 24_000
N_FFT = 1024
HOP = 240
NUM_BINS = 80
MAX_HZ = 8000.0
PEAK = 0.999146
MEAN, STD = -5.1753, 2.1544
FLOOR = 1e-5


def peak_normalize(waveform: Tensor) -> Tensor:
    """`waveform` (..., n) with its largest magnitude at 0.999146; silence stays silence."""
    peak = waveform.abs().amax(dim=-1, keepdim=True)
    return waveform * (PEAK / peak.clamp_min(1e-8))


def log_mel(waveform: Tensor) -> Tensor:
    """Log-mel (b, n // 240, 80) of 24 kHz sound (b, n) in [-1, 1], not yet normalised.

    Raises ValueError when the sound is too short for the reflected edges.
    """
    margin = (N_FFT - HOP) // 2
    if waveform.shape[-1] <= margin:
        raise ValueError(f"{waveform.shape[-1]} samples are too few for a mel, which takes {margin + 1}")
    padded = F.pad(waveform.float()[:, None], (margin, margin), mode="reflect")[:, 0]
    window, bank = _tables(padded.device)
    spectrum = torch.stft(padded, N_FFT, HOP, window=window, center=False, return_complex=True)
    magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)  # (b, 513, t)
    with torch.autocast(padded.device.type, enabled=False):  # its logarithm would show the rounding
        mels = bank @ magnitude
    return torch.log(mels.clamp_min(FLOOR)).transpose(1, 2)


def normalize(mels: Tensor) -> Tensor:
    """Log-mels to the scale the model works in."""
    return (mels - MEAN) / STD


def denormalize(mels: Tensor) -> Tensor:
    """The inverse of `normalize`."""
    return mels * STD + MEAN


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # kept for training as well as for sampling
        return torch.hann_window(N_FFT, device=device), slaney_filterbank().to(device)


def slaney_filterbank() -> Tensor:
    """Triangles of equal area on Slaney's scale (linear to 1 kHz, then logarithmic), float32 (80, 513)."""
    lower, centre, upper = (edge[:, None] for edge in bin_edges_hz())
    hz = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)
    rising = (hz - lower) / (centre - lower)
    falling = (upper - hz) / (upper - centre)
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return (triangles * 2 / (upper - lower)).float()


def bin_edges_hz() -> tuple[Tensor, Tensor, Tensor]:
    """Where each bin's triangle begins, peaks and ends, in Hz, three float64 (80,)."""
    edges = _mel_to_hz(torch.linspace(0, _hz_to_mel(MAX_HZ), NUM_BINS + 2, dtype=torch.float64))
    return edges[:-2], edges[1:-1], edges[2:]


_LINEAR_STEP_HZ = 200 / 3
_KNEE_HZ = 1000.0
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    """For frequencies from the knee up."""
    return _KNEE_HZ / _LINEAR_STEP_HZ + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    knee = _KNEE_HZ / _LINEAR_STEP_HZ
    return torch.where(mel < knee, mel * _LINEAR_STEP_HZ, _KNEE_HZ * torch.exp(_LOG_STEP * (mel - knee)))
