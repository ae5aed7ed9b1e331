"""Log-mels: parity with stored numbers, timing, and the scale the model works in."""

import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from uniavgen_cli.codecs import mel

PARITY = Path(os.environ.get("UNIAVGEN_PARITY", Path(__file__).parent / "parity"))


def test_log_mel_has_the_stored_numbers() -> None:
    stored = load_file(PARITY / "mel.safetensors")
    made = mel.log_mel(stored["waveform"]).transpose(1, 2)
    torch.testing.assert_close(made, stored["log_mel"], atol=1e-4, rtol=0)


def test_one_frame_a_hop_and_a_click_lands_in_its_own() -> None:
    sound = torch.zeros(1, 50 * mel.HOP)
    sound[0, 20 * mel.HOP + mel.HOP // 2] = 1.0
    mels = mel.log_mel(sound)
    assert mels.shape == (1, 50, mel.NUM_BINS)
    assert mels[0].sum(-1).argmax() == 20


def test_a_tone_is_loudest_in_the_bin_around_it() -> None:
    bank = mel.slaney_filterbank()
    for hz in (200.0, 950.0, 4000.0):
        tone = 0.5 * torch.sin(2 * math.pi * hz * torch.arange(24_000) / 24_000)
        loudest = mel.log_mel(tone[None])[0, 50].argmax()
        assert abs(bank[:, round(hz * mel.N_FFT / mel.SAMPLE_RATE)].argmax() - loudest) <= 1


def test_filters_cover_0_to_8_khz_with_equal_areas() -> None:
    bank = mel.slaney_filterbank()
    hz = torch.linspace(0, 12_000, bank.shape[1])
    assert bank[:, hz > mel.MAX_HZ].sum() == 0 and bank[:, (hz > 60) & (hz < 7900)].sum(0).min() > 0
    torch.testing.assert_close(bank[40:].sum(1) * hz[1], torch.ones(40), atol=0.02, rtol=0)


def test_normalising_is_undone_and_silence_has_a_floor() -> None:
    mels = mel.log_mel(torch.zeros(2, 4800))
    assert mels.shape == (2, 20, 80) and mels.unique().numel() == 1
    torch.testing.assert_close(mel.denormalize(mel.normalize(mels)), mels)


def test_peak_normalising() -> None:
    sound = torch.tensor([[0.1, -0.5, 0.2], [0.0, 0.0, 0.0]])
    peaks = mel.peak_normalize(sound).abs().amax(1)
    torch.testing.assert_close(peaks, torch.tensor([mel.PEAK, 0.0]))


def test_too_short_a_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="392 samples"):
        mel.log_mel(torch.zeros(1, 392))
