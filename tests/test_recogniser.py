"""The phoneme recogniser: what counts as an error, and that a small one learns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from uniavgen_cli.data.voice import PHONEMES, TimedPhoneme, sample_sentence, sample_voice, speak
from uniavgen_cli.evaluation import recogniser as r
from uniavgen_cli.evaluation.speech import error_rate, phoneme_error_rate

TINY = r.RecogniserConfig(dim=64, num_blocks=2)
PAUSE, M, AI, T = (PHONEMES.index(symbol) for symbol in ("pause", "m", "aɪ", "t"))


@pytest.mark.parametrize(
    "heard, wanted, distance",
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("ab", "ba", 2),
    ],
)
def test_edit_distance(heard: str, wanted: str, distance: int) -> None:
    assert r.edit_distance(heard, wanted) == distance


def test_error_rate_weighs_by_length() -> None:
    assert error_rate(["ab", "xyzw"], ["ab", "xyzv"]) == pytest.approx(1 / 6)
    assert error_rate([""], ["abc"]) == 1.0


def test_frames_collapse_into_phonemes() -> None:
    frames = [0, 0, M, M, M, T, AI, AI, AI, PAUSE, PAUSE, AI, AI, M, M]
    assert r.collapse(frames) == ("m", "t", "aɪ", "aɪ", "m")
    assert r.collapse([]) == ()


def test_the_best_path_does_not_flicker_but_changes_when_it_must() -> None:
    scores = np.full((12, 3), -5.0)
    scores[:6, 0], scores[6:, 1], scores[3, 2] = 0, 0, 2  # one frame of 2 inside a run of 0
    assert r.best_path(scores) == [0] * 6 + [1] * 6
    assert r.best_path(scores[:0]) == []


def test_what_was_said_leaves_pauses_out_and_joins_repeats() -> None:
    timed = [TimedPhoneme(s, i, i + 1) for i, s in enumerate(("m", "s", "s", "pause", "s", "aɪ", "pause"))]
    assert r.said(timed) == ("m", "s", "s", "aɪ")


def test_a_small_recogniser_learns_and_is_kept(tmp_path: Path) -> None:
    losses: list[float] = []
    trained = r.train_recogniser(
        TINY, steps=100, num_clips=8, batch_size=4, report=lambda step, loss: losses.append(loss)
    )
    assert np.mean(losses[-5:]) < 0.65 * np.mean(losses[:3])
    mels, labels = r.labelled_clip(r.SEED, 0)
    with torch.no_grad():
        right = (trained(mels[None])[0].argmax(-1) == labels).float().mean()
    assert right > 0.35  # a guess is right one time in ten at best

    from safetensors.torch import save_file

    save_file(trained.state_dict(), tmp_path / "recogniser.safetensors")
    kept = r.load_recogniser(tmp_path / "recogniser.safetensors", TINY)
    torch.testing.assert_close(kept(mels[None]), trained(mels[None]))


def test_silence_is_heard_as_nothing_that_was_said() -> None:
    rng = np.random.default_rng(1)
    spoken = speak(sample_sentence(rng), sample_voice(rng))
    torch.manual_seed(0)
    untrained = r.Recogniser(TINY).eval()
    with torch.no_grad():
        untrained.head.bias[0] = 100.0
    assert phoneme_error_rate(np.zeros(24_000, np.float32), spoken.phonemes, untrained) == 1.0


def test_what_is_heard_has_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        r, "best_path", lambda scores: [0] * 10 + [M] * 5 + [AI] * 20 + [M] * (len(scores) - 35)
    )
    torch.manual_seed(0)
    heard = r.Recogniser(TINY).eval().hear_timed(np.zeros(12_000, np.float32))
    assert [p.symbol for p in heard] == ["pause", "m", "aɪ", "m"]
    assert [(p.start_s, p.end_s) for p in heard] == [
        pytest.approx(span) for span in ((0, 0.1), (0.1, 0.15), (0.15, 0.35), (0.35, 0.5))
    ]
