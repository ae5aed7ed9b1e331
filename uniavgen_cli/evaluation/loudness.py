"""How loud a sound is, as broadcasters measure it, and how much of it is clipped."""

import numpy as np

_BLOCK_S, _HOP_S = 0.4, 0.1
_SILENCE_LUFS = -70.0
_CLIPPED, _RUN = 0.99, 3  # of full scale; so many samples in a row


def integrated_loudness(samples: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness in LUFS of samples (n,) or (n, channels) in [-1, 1].

    From -70 (silence, also returned for it) to about 0; speech is usual at -23 to -16, and neither end is
    better. ITU-R BS.1770-4: K-weighting, blocks of 400 ms, gates at -70 LUFS and 10 LU under the mean.
    """
    if not samples.size:
        return _SILENCE_LUFS
    channels = _k_weighted(samples.reshape(len(samples), -1).astype(np.float64), sample_rate)
    power = np.concatenate([np.zeros((1, channels.shape[1])), np.cumsum(channels**2, axis=0)])
    length = min(round(_BLOCK_S * sample_rate), len(samples))
    starts = np.arange(0, len(samples) - length + 1, round(_HOP_S * sample_rate))
    blocks = ((power[starts + length] - power[starts]) / length).sum(1)  # left and right weigh alike
    for gate in (_SILENCE_LUFS, None):
        if not len(blocks):
            return _SILENCE_LUFS
        threshold = gate if gate is not None else _lufs(blocks.mean()) - 10
        blocks = blocks[_lufs(blocks) > threshold]
    return float(_lufs(blocks.mean())) if len(blocks) else _SILENCE_LUFS


def peak_dbfs(samples: np.ndarray) -> float:
    """The largest sample in decibels of full scale.

    From -120 (silence) to 0 and, in float sound, above; under about -1 is safe.
    """
    return float(20 * np.log10(max(float(np.abs(samples).max(initial=0.0)), 1e-6)))


def clipped_share(samples: np.ndarray) -> float:
    """The share of samples (n,) or (n, channels) that stand at full scale three or more in a row.

    From 0 to 1, lower is better; clean sound has 0.
    """
    if not samples.size:
        return 0.0
    high = np.abs(samples.reshape(len(samples), -1)) >= _CLIPPED
    total = 0
    for channel in high.T:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], channel.astype(np.int8), [0]])))
        runs = edges[1::2] - edges[::2]
        total += int(runs[runs >= _RUN].sum())
    return total / high.size


def _lufs(power: np.ndarray | float) -> np.ndarray:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-12))


def _k_weighted(channels: np.ndarray, sample_rate: int) -> np.ndarray:
    """The two filters of BS.1770, a shelf for the head and a high pass, at any rate, by their spectrum."""
    padded = len(channels) + sample_rate  # room for the filters to ring out
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(padded))  # z^-1
    # BS.1770 gives numbers for 48 kHz; these are the analogue filters behind them, moved to this rate
    k, q = np.tan(np.pi * 1681.974450955533 / sample_rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416
    shelf = (
        (high + band * k / q + k * k) + 2 * (k * k - high) * turn + (high - band * k / q + k * k) * turn**2
    )
    shelf /= (1 + k / q + k * k) + 2 * (k * k - 1) * turn + (1 - k / q + k * k) * turn**2
    k, q = np.tan(np.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    scale = 1 + k / q + k * k
    high_pass = scale * (1 - turn) ** 2 / (scale + 2 * (k * k - 1) * turn + (1 - k / q + k * k) * turn**2)
    spectrum = np.fft.rfft(channels, padded, axis=0) * (shelf * high_pass)[:, None]
    return np.fft.irfft(spectrum, padded, axis=0)[: len(channels)]
