"""The instruments: curves compared, what mouths, people and voices look and sound like."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from uniavgen_cli.errors import WeightsError
from uniavgen_cli.evaluation import expression, instruments, look, opening, tone
from uniavgen_cli.evaluation.emotion import heard_emotion, seen_emotion
from uniavgen_cli.evaluation.identity import identity_drift, identity_likeness, some
from uniavgen_cli.evaluation.synchrony import best_lag, correlation
from uniavgen_cli.evaluation.voice import nearest_voice, voice_likeness


def test_correlation_is_blind_to_scale_and_knows_stillness() -> None:
    curve = np.random.default_rng(0).random(50).astype(np.float32)
    assert correlation(curve, 3 * curve + 2) == pytest.approx(1)
    assert correlation(curve, -curve) == pytest.approx(-1)
    assert correlation(curve, np.full(50, 0.3, np.float32)) == 0.0
    with pytest.raises(ValueError, match="50"):
        correlation(curve, curve[1:])


@pytest.mark.parametrize("lag", [-4, -1, 0, 3])
def test_the_best_lag_is_positive_for_a_late_curve(lag: int) -> None:
    truth = np.random.default_rng(1).random(60)
    found, value = best_lag(np.roll(truth, lag), truth)
    assert found == lag and value == pytest.approx(1)


def test_too_short_for_a_lag() -> None:
    with pytest.raises(ValueError, match="6 frames"):
        best_lag(np.arange(6.0), np.arange(6.0))


# ---- the opening reader ----------------------------------------------------------------------------------


def test_an_opening_reader_learns_and_is_kept(tmp_path: Path) -> None:
    losses: list[float] = []
    trained = opening.train_opening_reader(
        steps=40, num_speakers=4, batch_size=12, report=lambda step, loss: losses.append(loss)
    )
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])

    save_file(trained.state_dict(), tmp_path / "opening.safetensors")
    kept = opening.load_opening_reader(tmp_path / "opening.safetensors")
    frames = opening.drawn_faces(1, 0, num_frames=5).frames
    np.testing.assert_array_equal(kept.read(frames), trained.read(frames))
    assert kept.read(frames[:, 16:112]).shape == (5,)  # a picture wider than high


def test_moved_pictures_keep_their_places() -> None:
    """A bright spot lies where the map of `_elsewhere` and the square of `_crop` say."""
    spot = np.zeros((128, 128, 3), np.uint8)
    cv2.circle(spot, (80, 50), 4, (255, 255, 255), -1, cv2.LINE_AA)
    place = np.array([80.5, 50.5])  # pixel 80 has its middle at 80.5
    picture, move, _ = opening._elsewhere(spot, np.random.default_rng(3))
    np.testing.assert_allclose(_middle(picture), move @ [*place, 1.0], atol=0.1)
    crop = opening._crop(spot, place + [3.0, -2.0], opening.READ_SIDE / opening.READ_SHARE)  # pixel for pixel
    np.testing.assert_allclose(_middle(crop), [16 - 3, 16 + 2], atol=0.1)


def _middle(picture: np.ndarray) -> np.ndarray:
    weight = picture[..., 0].astype(float)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


# ---- the look probe --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looker() -> look.LookProbe:
    """One that has learnt a little: fourteen people, who are known again."""
    losses: list[float] = []
    trained = look.train_look_probe(
        steps=50, num_people=14, batch_size=7, report=lambda step, loss: losses.append(loss)
    )
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    return trained


def test_the_same_person_is_known_again_and_another_is_not(looker: look.LookProbe) -> None:
    people = [look.drawn_person(look.SEED, number).frames for number in range(6)]
    same = [identity_likeness(frames[2:4], frames[:2], looker) for frames in people]  # in other clothes
    other = [identity_likeness(frames[2:4], people[i - 1][:2], looker) for i, frames in enumerate(people)]
    assert np.mean(same) > np.mean(other) + 0.4
    assert identity_likeness(people[0][:1], people[0][:1], looker) == pytest.approx(1, abs=1e-5)
    drifting = np.concatenate([people[0][:2], people[1][:2]])
    assert identity_drift(drifting, looker) < identity_drift(people[0][:2], looker)


def test_a_look_is_made_of_chances(looker: look.LookProbe) -> None:
    frames = look.drawn_person(3, 0).frames
    seen = looker.look(np.stack([cv2.resize(frame, (160, 96)) for frame in frames]))  # any size
    assert seen.people.shape == (6, 48)
    for name, chances in seen.attributes.items():
        assert chances.shape == (6, len(look.ATTRIBUTES[name]))
        np.testing.assert_allclose(chances.sum(1), 1, atol=1e-5)


def test_a_person_keeps_hair_and_skin_and_changes_clothes_and_walls() -> None:
    person = look.drawn_person(5, 1)
    columns = list(look.ATTRIBUTES)
    for name in ("hair_colour", "hair_style", "skin", "glasses"):
        assert len(set(person.attributes[:, columns.index(name)])) == 1
    walls = [person.frames[i, :6, :6].reshape(-1, 3).mean(0) for i in (0, 2, 4)]
    assert np.abs(walls[0] - walls[1]).max() > 5 or np.abs(walls[1] - walls[2]).max() > 5


def test_contrast_is_low_for_partners_that_are_alike() -> None:
    rows = torch.eye(4).repeat_interleave(2, 0)
    assert look.contrast(rows) < 1e-3
    assert look.contrast(rows[[0, 2, 1, 4, 3, 6, 5, 7]]) > 5


def test_some_frames_are_spread_over_the_clip() -> None:
    assert some(np.arange(81), 5).tolist() == [0, 20, 40, 60, 80]
    assert some(np.arange(3)).tolist() == [0, 1, 2]


# ---- the expression probe --------------------------------------------------------------------------------


def test_an_expression_probe_learns_and_is_kept(tmp_path: Path) -> None:
    losses: list[float] = []
    trained = expression.train_expression_probe(
        steps=60, num_people=12, batch_size=16, report=lambda step, loss: losses.append(loss)
    )
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    save_file(trained.state_dict(), tmp_path / "expression.safetensors")
    kept = expression.load_expression_probe(tmp_path / "expression.safetensors")
    torch.manual_seed(0)
    locator = opening.OpeningReader().eval()
    faces = opening.drawn_faces(expression.SEED, 0, num_frames=4)
    chances = kept.read(faces.frames, locator)
    assert chances.shape == (4, 7)
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-5)
    emotion, chance = seen_emotion(faces.frames, kept, locator)
    assert emotion in look.EMOTIONS and 1 / 7 <= chance <= 1


def test_the_square_of_a_face_has_the_mouth_where_it_belongs() -> None:
    spot = np.zeros((128, 128, 3), np.uint8)
    cv2.circle(spot, (80, 90), 3, (255, 255, 255), -1, cv2.LINE_AA)
    square = expression.face_square(spot, np.array([80.5, 90.5]), expression.SIDE / 1.1)
    np.testing.assert_allclose(_middle(square), [32, 32 + 0.25 * expression.SIDE / 1.1], atol=0.1)


# ---- the tone probe --------------------------------------------------------------------------------------


def test_a_tone_probe_learns_voices_and_is_kept(tmp_path: Path) -> None:
    losses: list[float] = []
    trained = tone.train_tone_probe(
        steps=60, num_voices=6, batch_size=6, report=lambda step, loss: losses.append(loss)
    )
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    save_file(trained.state_dict(), tmp_path / "tone.safetensors")
    kept = tone.load_tone_probe(tmp_path / "tone.safetensors")

    from uniavgen_cli.data.voice import VOICES, speak

    low, high = next(v for v in VOICES if v.gender == "male"), next(v for v in VOICES if v.gender == "female")
    one, again = (speak(text, low).samples for text in ("Good morning to you.", "See you tomorrow, Anna."))
    other = speak("Good morning to you.", high).samples
    assert voice_likeness(one, again, kept) > voice_likeness(one, other, kept)
    assert nearest_voice(again, [other, one], kept) == 1
    padded = np.pad(one, (12_000, 24_000))  # silence around it changes nothing
    assert voice_likeness(one, padded, kept) > 0.98
    assert voice_likeness(one, 0.1 * one, kept) == pytest.approx(1, abs=1e-3)
    emotion, chance = heard_emotion(one, kept)
    assert emotion in look.EMOTIONS and 1 / 7 <= chance <= 1


def test_the_spoken_part_begins_and_ends_with_sound() -> None:
    mels = torch.full((100, 80), -2.0)
    mels[30:70] = 0.5
    assert len(tone.spoken_part(mels)) == 40
    assert len(tone.spoken_part(mels[:25])) == 25  # nothing stands out


# ---- which there are -------------------------------------------------------------------------------------


def test_the_probes_that_are_there_are_read_and_the_rest_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIAVGEN_WEIGHTS", str(tmp_path / "weights"))
    shipped = instruments.load_instruments()  # what comes with nano, and no more
    assert shipped.opening is not None and shipped == instruments.Instruments(opening=shipped.opening)
    save_file(tone.ToneProbe().state_dict(), tmp_path / "tone.safetensors")
    read = instruments.load_instruments(tmp_path)
    assert read.tone is not None and read.look is None and read.whisper is None
    (tmp_path / "weights" / "nano").mkdir(parents=True)  # those that come with nano are found as well
    save_file(opening.OpeningReader().state_dict(), tmp_path / "weights" / "nano" / "opening.safetensors")
    assert instruments.load_instruments(tmp_path).opening is not None
    save_file(opening.OpeningReader().state_dict(), tmp_path / "tone.safetensors")
    with pytest.raises(WeightsError, match="tone"):
        instruments.load_instruments(tmp_path)


def test_missing_probes_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIAVGEN_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(tone, "train_tone_probe", partial(tone.train_tone_probe, steps=1, num_voices=2))
    told: list[str] = []
    folder = tmp_path / "probes"
    assert instruments.make_missing(folder, ["tone"], told.append) == [folder / "tone.safetensors"]
    assert instruments.make_missing(folder, ["tone"], told.append) == [] and len(told) == 1
    assert instruments.load_instruments(folder).tone is not None
