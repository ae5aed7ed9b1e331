"""Sound from log-mels: a small network reads the pitch and two filters, which shape a pulse train and noise.

The network (ConvNeXt blocks at the mel rate, as in Vocos, arXiv 2306.00814) gives every 10 ms the pitch and
the spectral envelopes of a pulse train and of white noise (as in WORLD and neural source-filter models, arXiv
1904.12088); both are filtered in minimum phase and added up. Harmonics are in phase by construction, so a
generated, noisy mel still gives a clear voice.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen_cli.codecs.mel import HOP, NUM_BINS, PEAK, SAMPLE_RATE, bin_edges_hz, denormalize
from uniavgen_cli.models.state_dict import load_weights

N_FFT = 1024
WINDOW = 2 * HOP  # periodic Hann windows of two hops add up to one
NUM_FREQUENCIES = N_FFT // 2 + 1
PITCH_MIN_HZ, PITCH_MAX_HZ = 55.0, 440.0


@dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """Width and depth of the network; pitch classes, and points at which each envelope is given."""

    dim: int = 192
    num_blocks: int = 6
    pitch_bins: int = 108  # a third of a semitone
    pulse_points: int = 128
    noise_points: int = 64


@dataclass(frozen=True)
class Voicing:
    """What the network reads from mels: pitch_logits (b, t, pitch_bins); log envelopes (b, t, 513)."""

    pitch_logits: Tensor
    pulse: Tensor
    noise: Tensor


class Vocoder(nn.Module):
    """Normalised mels (b, t, 80) to 24 kHz sound (b, t*240), the same sound for the same mels."""

    mel_grid: Tensor
    pulse_grid: Tensor
    noise_grid: Tensor
    pitch_hz: Tensor

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Conv1d(NUM_BINS, config.dim, 7, padding=3)
        self.blocks = nn.ModuleList(_Block(config.dim, config.num_blocks) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.pitch = nn.Linear(config.dim, config.pitch_bins)
        self.envelopes = nn.Linear(config.dim, config.pulse_points + config.noise_points)
        self.register_buffer("mel_grid", interpolation(bin_edges_hz()[1]), persistent=False)
        self.register_buffer("pulse_grid", interpolation(erb_scale(config.pulse_points)), persistent=False)
        self.register_buffer("noise_grid", interpolation(erb_scale(config.noise_points)), persistent=False)
        self.register_buffer("pitch_hz", pitch_classes(config.pitch_bins), persistent=False)

    @classmethod
    def load(cls, path: Path, config: VocoderConfig) -> "Vocoder":
        """The vocoder with the weights at `path`, float32; raises WeightsError when they don't fit."""
        vocoder = cls(config)  # not on the meta device: its tables are no weights
        load_weights(vocoder, path)
        return vocoder.eval()

    def forward(self, mels: Tensor) -> Voicing:
        x = self.embed(mels.transpose(1, 2)).transpose(1, 2)  # (b, t, d)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        sizes = (self.config.pulse_points, self.config.noise_points)
        pulse, noise = self.envelopes(x).float().split(sizes, dim=-1)
        with torch.autocast(x.device.type, enabled=False):  # logarithms, soon to be exponents
            # the mel itself is a first guess at both envelopes; the network says what each is beside it
            rough = denormalize(mels.float()) @ self.mel_grid  # (b, t, 513)
            pulse, noise = rough + pulse @ self.pulse_grid, rough + noise @ self.noise_grid
        return Voicing(self.pitch(x).float(), pulse, noise)

    @torch.inference_mode()
    def decode(self, mels: Tensor) -> Tensor:
        """Sound (b, t*240), float32, peak 0.999146 or less, of normalised mels (b, t, 80)."""
        voicing = self(mels.to(self.embed.weight.dtype))
        pitch_hz = self.read_pitch(voicing.pitch_logits)
        samples = mels.shape[1] * HOP
        # drawn on the CPU, so that every device makes the same sound
        noise = torch.randn(samples, generator=torch.Generator().manual_seed(0)).to(mels.device)
        sound = synthesise(voicing, pitch_hz, noise.expand(mels.shape[0], samples))
        # the phases are ours, so a peak can rise above the one the mel was taken from
        return sound * (PEAK / sound.abs().amax(1, keepdim=True).clamp_min(PEAK))

    def read_pitch(self, logits: Tensor) -> Tensor:
        """Pitch in Hz (b, t): the mean around the likeliest class, on a logarithmic scale."""
        likeliest = logits.argmax(-1, keepdim=True)
        away = (torch.arange(logits.shape[-1], device=logits.device) - likeliest).abs()
        near = logits.masked_fill(away > 3, -torch.inf).softmax(-1)
        return torch.exp(near @ self.pitch_hz.log())


class _Block(nn.Module):
    """A ConvNeXt block: depthwise convolution over 7 frames, then a wide layer at each frame."""

    def __init__(self, dim: int, num_blocks: int) -> None:
        super().__init__()
        self.around = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.wide = nn.Linear(dim, 3 * dim)
        self.back = nn.Linear(3 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 1 / num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.around(x.transpose(1, 2)).transpose(1, 2))  # (b, t, d)
        return x + self.scale * self.back(F.gelu(self.wide(y)))


def synthesise(voicing: Voicing, pitch_hz: Tensor, noise: Tensor) -> Tensor:
    """Sound (b, t*240) of envelopes and pitch (b, t) in Hz, with `noise` (b, t*240) of unit deviation."""
    shaped = _frames(pulse_train(pitch_hz)) * minimum_phase(voicing.pulse)
    shaped = shaped + _frames(noise) * minimum_phase(voicing.noise)
    # each window's sound and how it rings on, in whole hops, each added to the hop where it falls
    hops = F.pad(torch.fft.irfft(shaped, N_FFT), (0, -N_FFT % HOP)).unflatten(2, (-1, HOP))  # (b, t, 5, 240)
    num_tokens, reach = hops.shape[1:3]
    sound = torch.stack([F.pad(hops[:, :, i], (0, 0, i, reach - i)) for i in range(reach)]).sum(0)
    margin = (WINDOW - HOP) // 2
    return sound.flatten(1)[:, margin : margin + num_tokens * HOP]


def pulse_train(pitch_hz: Tensor) -> Tensor:
    """Pulses of unit power (b, t*240), harmonics up to half the sample rate, for pitch (b, t) in Hz."""
    per_sample = F.interpolate(pitch_hz.log()[:, None], scale_factor=HOP, mode="linear")[:, 0].exp()
    turns = torch.cumsum(per_sample.double() / SAMPLE_RATE, dim=1).remainder(1)
    half_angle = (math.pi * turns).float()
    harmonics = torch.floor(0.5 * SAMPLE_RATE / per_sample)
    below = torch.sin(half_angle)
    # the sum of `harmonics` cosines in closed form; at the pulse itself it is their number
    cosines = 0.5 * (torch.sin((2 * harmonics + 1) * half_angle) / below - 1)
    cosines = torch.where(below.abs() < 1e-4, harmonics, cosines)
    return cosines * torch.sqrt(2 / harmonics)


def minimum_phase(log_magnitude: Tensor) -> Tensor:
    """The causal complex response (..., 513) with this natural-log magnitude, by folding its cepstrum."""
    cepstrum = torch.fft.irfft(log_magnitude, N_FFT)
    half = N_FFT // 2
    folded = torch.cat((cepstrum[..., :1], 2 * cepstrum[..., 1:half], cepstrum[..., half : half + 1]), dim=-1)
    response = torch.fft.rfft(folded, N_FFT)
    return torch.polar(response.real.exp(), response.imag)


def _frames(sound: Tensor) -> Tensor:
    """Spectra (b, t, 513) of the windows around each frame's centre."""
    margin = (WINDOW - HOP) // 2
    window = torch.hann_window(WINDOW, device=sound.device)
    pieces = F.pad(sound, (margin, margin)).unfold(1, WINDOW, HOP)  # (b, t, 480)
    return torch.fft.rfft(pieces * window, N_FFT)


def pitch_classes(num_bins: int) -> Tensor:
    """The pitch of each class in Hz, evenly spaced in logarithm."""
    return torch.linspace(math.log(PITCH_MIN_HZ), math.log(PITCH_MAX_HZ), num_bins).exp()


def erb_scale(num_points: int) -> Tensor:
    """Frequencies in Hz evenly spaced on the ear's scale (Glasberg and Moore 1990), 0 to 12 kHz."""
    top = math.log1p(SAMPLE_RATE / 2 / 228.8)
    return 228.8 * torch.expm1(torch.linspace(0, top, num_points, dtype=torch.float64))


def interpolation(points_hz: Tensor) -> Tensor:
    """Weights (num_points, 513) that draw lines between points at these frequencies, flat beyond them."""
    num_points = len(points_hz)
    hz = torch.linspace(0, SAMPLE_RATE / 2, NUM_FREQUENCIES, dtype=torch.float64)
    right = torch.searchsorted(points_hz, hz).clamp(1, num_points - 1)
    share = ((hz - points_hz[right - 1]) / (points_hz[right] - points_hz[right - 1])).clamp(0, 1)
    weights = torch.zeros(num_points, NUM_FREQUENCIES, dtype=torch.float64)
    columns = torch.arange(NUM_FREQUENCIES)
    weights[right - 1, columns] = 1 - share
    weights[right, columns] = share
    return weights.float()
