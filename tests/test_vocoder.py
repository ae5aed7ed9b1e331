"""The vocoder: source and filters by numbers, its training, the trained one on voices it never heard."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from uniavgen_cli.codecs import mel
from uniavgen_cli.codecs import vocoder as v
from uniavgen_cli.data.voice import sample_sentence, sample_voice, speak
from uniavgen_cli.training import vocoder_stage as stage
from uniavgen_cli.training.trainer import run

TINY = v.VocoderConfig(dim=32, num_blocks=1, pitch_bins=36, pulse_points=32, noise_points=16)
TRAINED = Path(__file__).resolve().parent.parent / "weights" / "nano" / "vocoder.safetensors"


def test_as_many_samples_as_mels_and_the_same_every_time() -> None:
    vocoder = v.Vocoder(TINY).eval()
    mels = torch.randn(2, 23, mel.NUM_BINS)
    sound = vocoder.decode(mels)
    assert sound.shape == (2, 23 * mel.HOP) and sound.dtype == torch.float32 and sound.isfinite().all()
    assert torch.equal(sound, vocoder.decode(mels))


def test_flat_filters_give_the_source_itself_in_its_place() -> None:
    pitch_hz = torch.linspace(90, 140, 30)[None]
    flat, silent = torch.zeros(1, 30, v.NUM_FREQUENCIES), torch.full((1, 30, v.NUM_FREQUENCIES), -30.0)
    noise = torch.randn(1, 30 * mel.HOP)
    logits = torch.zeros(1, 30, TINY.pitch_bins)
    pulses = v.synthesise(v.Voicing(logits, flat, silent), pitch_hz, noise)
    inside = slice(mel.HOP, -mel.HOP)  # the outermost windows have one neighbour
    torch.testing.assert_close(pulses[:, inside], v.pulse_train(pitch_hz)[:, inside], atol=1e-3, rtol=1e-3)
    hiss = v.synthesise(v.Voicing(logits, silent, flat), pitch_hz, noise)
    torch.testing.assert_close(hiss[:, inside], noise[:, inside], atol=1e-3, rtol=1e-3)


def test_pulses_have_unit_power_at_multiples_of_the_pitch_only() -> None:
    pulses = v.pulse_train(torch.full((1, 100), 120.0))[0]
    assert pulses.square().mean().item() == pytest.approx(1.0, abs=0.05)
    power = torch.fft.rfft(pulses).abs().square()  # one second: a bin is 1 Hz
    assert power[120:11_900:120].sum() > 0.98 * power.sum()


def test_minimum_phase_keeps_the_magnitude_and_acts_at_once() -> None:
    hz = torch.linspace(0, 12_000, v.NUM_FREQUENCIES)
    log_magnitude = 2 * torch.exp(-(((hz - 700) / 300) ** 2)) - hz / 6000
    response = v.minimum_phase(log_magnitude)
    torch.testing.assert_close(response.abs().log(), log_magnitude, atol=1e-3, rtol=0)
    impulse = torch.fft.irfft(response, v.N_FFT).square()
    assert impulse[: v.N_FFT // 4].sum() > 0.99 * impulse.sum()


def test_envelopes_are_lines_through_their_points() -> None:
    weights = v.interpolation(v.erb_scale(20))
    torch.testing.assert_close(weights.sum(0), torch.ones(v.NUM_FREQUENCIES))
    assert weights.min() >= 0 and weights[0, 0] == 1 and weights[-1, -1] == pytest.approx(1)


def test_pitch_is_read_between_classes() -> None:
    vocoder = v.Vocoder(TINY)
    hz = vocoder.pitch_hz
    target = torch.tensor([[97.0, 211.0, 333.0]])
    near = -0.5 * ((hz.log() - target.log()[..., None]) / (hz[1] / hz[0]).log()).square()
    torch.testing.assert_close(vocoder.read_pitch(near), target, rtol=0.01, atol=0)


@pytest.mark.parametrize("hz", [62.0, 110.0, 234.0, 400.0])
def test_pitch_is_tracked(hz: float) -> None:
    glide = torch.linspace(hz, hz * 1.05, 80)[None]
    voiced = 0.1 * v.pulse_train(glide)[0].numpy()
    sound = np.concatenate(
        [np.zeros(4800, np.float32), voiced, 0.1 * np.random.default_rng(0).normal(size=9600)]
    )
    pitch = stage.track_pitch(sound.astype(np.float32))
    assert len(pitch) == 140
    np.testing.assert_allclose(pitch[25:95], glide[0, 5:75].numpy(), rtol=0.02)
    assert (pitch[:17] == 0).all() and (pitch[105:135] > 0).mean() < 0.1


def test_pitch_gaps_are_bridged() -> None:
    pitch = torch.tensor([[0.0, 100.0, 0.0, 200.0, 0.0], [0.0] * 5])
    assert stage.filled_pitch(pitch).tolist() == [[100, 100, 150, 200, 200], [120] * 5]


def test_a_training_batch_follows_from_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "NUM_CLIPS", 4)
    first, again, other = (
        stage.batch(3, batch_size=2),
        stage.batch(3, batch_size=2),
        stage.batch(4, batch_size=2),
    )
    assert first["waveform"].shape == (2, stage.SAMPLES) and first["mels"].shape == (2, stage.TOKENS, 80)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["waveform"], other["waveform"])
    losses = stage.loss(v.Vocoder(TINY), first, 3)
    assert all(value.shape == (2,) and value.isfinite().all() for value in losses.values())


def test_a_tiny_vocoder_learns_and_is_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage, "NUM_CLIPS", 8)
    batch = stage.batch(0, batch_size=4)
    training = stage.vocoder_stage(TINY, steps=32, lr=2e-2, batch_size=2, dtype=torch.float32)

    @torch.no_grad()
    def total(vocoder: torch.nn.Module) -> float:
        return sum(value.mean().item() for value in stage.loss(vocoder, batch, 0).values())

    before = total(training.module)
    assert run(training, tmp_path)
    exported = tmp_path / "vocoder.safetensors"
    assert total(v.Vocoder.load(exported, TINY)) < 0.8 * before
    assert {value.dtype for value in load_file(exported).values()} == {torch.bfloat16}


def test_the_trained_vocoder_gives_unheard_speech_back() -> None:
    vocoder = v.Vocoder.load(TRAINED, v.VocoderConfig())
    assert TRAINED.stat().st_size < 5 * 2**20
    errors, pitch_errors = [], []
    for index in range(6):
        rng = np.random.default_rng([2024, index])
        samples = torch.from_numpy(speak(sample_sentence(rng), sample_voice(rng)).samples)
        waveform = mel.peak_normalize(samples[None])
        wanted = mel.log_mel(waveform)
        sound = vocoder.decode(mel.normalize(wanted))
        errors.append((mel.log_mel(sound) - wanted).abs().mean().item())
        pitch, made = stage.track_pitch(waveform[0].numpy()), stage.track_pitch(sound[0].numpy())
        both = (pitch > 0) & (made[: len(pitch)] > 0)
        pitch_errors.append(np.abs(np.log2(made[: len(pitch)][both] / pitch[both])))
        assert 0.3 < sound.abs().max() <= 1
    assert np.mean(errors) < 0.45, (
        errors
    )  # natural log; white noise of the right loudness is off by more than 2
    assert np.mean(np.concatenate(pitch_errors) < 0.5 / 12) > 0.9  # within half a semitone


def test_the_trained_vocoder_keeps_its_voice_on_noisy_mels() -> None:
    vocoder = v.Vocoder.load(TRAINED, v.VocoderConfig())
    samples = speak(
        "We will meet again on Sunday morning.", sample_voice(np.random.default_rng(0), "male")
    ).samples
    clean = mel.normalize(mel.log_mel(mel.peak_normalize(torch.from_numpy(samples)[None])))
    noisy = clean + 0.25 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    heard = mel.normalize(mel.log_mel(vocoder.decode(noisy)))
    assert (heard - clean).abs().mean() < (noisy - clean).abs().mean() * 1.25
    assert math.isclose(heard.mean().item(), clean.mean().item(), abs_tol=0.3)
