"""What keeps a long clip as it began: colours and loudness of later windows against the first."""

import numpy as np
import pytest
import torch

from uniavgen_cli.codecs.mel import denormalize, normalize
from uniavgen_cli.config import load_preset
from uniavgen_cli.diffusion.sampler import State
from uniavgen_cli.engine.drift import loudness
from uniavgen_cli.engine.reel import as_loud
from uniavgen_cli.engine.request import Request, check
from uniavgen_cli.engine.steady import MOST_CONTRAST, level, levelled, matched, speaks, steadied

WORDS = "Good morning, and welcome to the house by the river. We open at nine, and we close at five."


def test_colours_drift_back_to_the_first_windows() -> None:
    first = torch.randn(1, 6, 9, 4, 4, generator=torch.Generator().manual_seed(0))
    drifted = 1.1 * first + torch.linspace(-1, 1, 6).view(1, 6, 1, 1, 1)
    assert torch.allclose(matched(drifted, first), first, atol=1e-5)
    assert torch.allclose(matched(first, first), first, atol=1e-6)


def test_contrast_is_changed_within_bounds_and_a_still_channel_stays_still() -> None:
    first = torch.randn(1, 2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    faint = first * torch.tensor([0.1, 0.0]).view(1, 2, 1, 1, 1)
    made = matched(faint, first)
    ratio = made[:, 0].std() / faint[:, 0].std()
    assert float(ratio) == pytest.approx(MOST_CONTRAST, rel=1e-3)
    assert float(made[:, 1].std()) < 1e-6
    assert torch.allclose(made.mean((2, 3, 4)), first.mean((2, 3, 4)), atol=1e-5)


def mels(loud: float, silent_share: float = 0.3) -> torch.Tensor:
    """Log-mels (1, 200, 80) of something said at `loud` (natural logarithm of magnitude) and of silence."""
    tokens = torch.full((1, 200, 80), loud)
    tokens[:, : round(200 * silent_share)] = -11.5
    return normalize(tokens)


def test_loudness_comes_back_to_the_first_windows() -> None:
    first, quiet = mels(-2.0), mels(-2.3, silent_share=0.6)  # 2.6 dB; how long the pauses are doesn't matter
    assert level(first) - level(quiet) == pytest.approx(2.606, abs=0.01)
    assert level(levelled(quiet, first)) == pytest.approx(level(first), abs=0.01)
    assert torch.allclose(levelled(first, first), first, atol=1e-5)


def test_loudness_changes_by_6_db_at_most_and_silence_stays_silence() -> None:
    made = levelled(mels(-4.0), mels(-2.0))
    assert level(made) - level(mels(-4.0)) == pytest.approx(6.0, abs=0.01)
    # what is too loud comes down as far as it must
    assert level(levelled(mels(-2.0), mels(-4.0))) == pytest.approx(level(mels(-4.0)), abs=0.1)
    made = denormalize(levelled(mels(-2.0), mels(-4.0)))
    assert float(made.min()) >= -11.52


def test_only_what_a_window_made_itself_is_changed() -> None:
    plan = check(Request(task="generate", prompt="a man", speech=WORDS), load_preset("nano"))
    window = plan.windows[1]
    generator = torch.Generator().manual_seed(0)
    first = State(torch.randn(1, 4, 21, 2, 2, generator=generator), mels(-2.0).repeat(1, 3, 1)[:, :506])
    made = State(first.video + 1, mels(-2.3).repeat(1, 3, 1)[:, :506])
    after = steadied(plan, 1, made, first)
    kept, tokens = window.kept_latents, 231
    assert torch.equal(after.video[:, :, :kept], made.video[:, :, :kept])
    assert torch.equal(after.audio[:, :tokens], made.audio[:, :tokens])
    assert float(after.video[:, :, kept:].mean()) == pytest.approx(float(first.video.mean()), abs=1e-4)
    assert level(after.audio[:, tokens:]) == pytest.approx(level(first.audio), abs=0.01)
    mute = State(made.video, torch.full((1, 506, 80), -2.9))
    assert torch.equal(steadied(plan, 1, mute, first).audio, mute.audio)  # silence stays silence
    assert speaks(made.audio) and not speaks(mute.audio)


def test_windows_are_heard_as_loud_as_the_first() -> None:
    rng = np.random.default_rng(0)
    speech = (0.1 * rng.standard_normal(48_000)).astype(np.float32)
    level = loudness(speech, 24_000)
    for change_db in (-5, 4, 15):
        other = speech * np.float32(10 ** (change_db / 20)) * np.float32(0.2)
        back = as_loud(other, loudness(0.2 * speech, 24_000), 24_000)
        assert loudness(back, 24_000) == pytest.approx(loudness(0.2 * speech, 24_000), abs=0.1)
        assert back[0] == other[0] and back.dtype == np.float32
    quiet = as_loud(0.1 * speech, level, 24_000)
    assert loudness(quiet, 24_000) == pytest.approx(level - 14, abs=0.1)  # 6 of 20 dB
    spike = 0.5 * speech
    spike[100] = 0.9
    assert np.abs(as_loud(spike, level, 24_000)).max() <= 1.0
    silence = np.zeros(48_000, np.float32)
    assert as_loud(silence, level, 24_000) is silence and as_loud(speech, None, 24_000) is speech
