"""The caption encoder: words, padding, unknown words, strict loading, training, what shipped states carry."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from uniavgen_cli.codecs.caption import UNKNOWN, CaptionConfig, CaptionEncoder, split_words
from uniavgen_cli.data import captions
from uniavgen_cli.data.avatar import EMOTIONS
from uniavgen_cli.errors import WeightsError
from uniavgen_cli.training import caption_stage, trainer

TINY = CaptionConfig(tokens=12, dim=16, num_layers=1, num_heads=2)
PROBED = ("gender", "hair_colour", "hair_style", "beard", "emotion", "clothes_colour", "background_colour")
SHIPPED = Path(__file__).parent.parent / "weights" / "nano" / "caption.safetensors"


@pytest.fixture
def encoder() -> CaptionEncoder:
    torch.manual_seed(0)
    return CaptionEncoder(TINY, ("blonde", "hair", "woman")).eval()


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A Woman, blue-eyed; hair:black.", ["a", "woman", "blue", "eyed", "hair", "black"]),
        ('A man says "red green" calmly', ["a", "man", "says", "calmly"]),
        ("A man says “red green” calmly", ["a", "man", "says", "calmly"]),
        ("a man says 'red', smiling", ["a", "man", "says", "smiling"]),
        ("the man's hair, the woman's", ["the", "man", "s", "hair", "the", "woman", "s"]),
        (" ... ", []),
    ],
)
def test_words(caption: str, words: list[str]) -> None:
    assert split_words(caption) == words


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_the_emotion_asked_for_is_read_from_the_words(emotion: str) -> None:
    for phrase in captions._EMOTIONS[emotion]:
        assert captions.emotion_named(f"A man, {phrase}, in front of a wall") == emotion
    assert captions.emotion_named("a shocking pink hair, crystal earrings, saddle brown wall") == "neutral"
    assert captions.emotion_named("a happy man beside a sad one") == "neutral"


def test_states_end_with_the_words(encoder: CaptionEncoder) -> None:
    states = encoder.encode(["blonde woman", "", "hair " * 40])
    assert states.shape == (3, 12, 16)
    assert states[0, :2].abs().sum(-1).min() > 0
    assert states[0, 2:].abs().max() == 0
    assert states[1].abs().max() == 0
    assert states[2, -1].abs().sum() > 0
    assert torch.isfinite(states).all()


def test_other_captions_of_the_batch_change_nothing(encoder: CaptionEncoder) -> None:
    alone = encoder.encode(["blonde woman"])
    together = encoder.encode(["hair hair hair hair", "blonde woman"])
    assert torch.allclose(alone[0], together[1], atol=1e-6)


def test_unknown_words_are_all_the_same(encoder: CaptionEncoder) -> None:
    assert encoder.tokenize(["zebra woman"])[0, :2].tolist() == [UNKNOWN, 4]
    assert torch.equal(encoder.encode(["zebra woman"]), encoder.encode(["quokka woman"]))


def test_loading_is_strict(encoder: CaptionEncoder, tmp_path: Path) -> None:
    metadata = {"vocabulary": json.dumps(encoder.vocabulary)}
    save_file(encoder.state_dict(), tmp_path / "good.safetensors", metadata=metadata)
    loaded = CaptionEncoder.load(tmp_path / "good.safetensors", TINY)
    assert torch.equal(loaded.encode(["blonde hair"]), encoder.encode(["blonde hair"]))

    with pytest.raises(WeightsError, match="positions.weight"):
        CaptionEncoder.load(tmp_path / "good.safetensors", replace(TINY, tokens=9))
    save_file(encoder.state_dict(), tmp_path / "wordless.safetensors")
    with pytest.raises(WeightsError, match="vocabulary"):
        CaptionEncoder.load(tmp_path / "wordless.safetensors", TINY)


def test_batches_follow_from_the_step() -> None:
    stage = caption_stage.caption_stage(TINY, batch_size=4, surveyed=50)
    first, again, other = (stage.batch(step) for step in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["tokens"], other["tokens"])


def test_training_learns_and_exports(tmp_path: Path) -> None:
    stage = caption_stage.caption_stage(TINY, steps=40, lr=1e-2, batch_size=16, surveyed=100)
    batch = stage.batch(1000)
    with torch.no_grad():
        before = stage.loss(stage.module, batch, 0)["attributes"]
    assert trainer.run(stage, tmp_path)
    with torch.no_grad():
        after = stage.loss(stage.module, batch, 0)["attributes"]
    assert after.shape == (16,)
    assert after.mean() < 0.8 * before.mean()
    encoder = CaptionEncoder.load(tmp_path / "caption.safetensors", TINY)
    assert "hair" in encoder.vocabulary


def probe_accuracy(encoder: CaptionEncoder, num_train: int, num_test: int) -> dict[str, float]:
    """Share of unseen captions whose named attributes a linear map, fitted apart, reads from mean states."""
    first = 2 * caption_stage.HELD_OUT
    captions = [caption_stage.drawn_caption(first + i) for i in range(num_train + num_test)]
    with torch.inference_mode():
        states = caption_stage.mean_state(encoder.encode([caption.text for caption in captions])).double()
    inputs = torch.cat([states, torch.ones(len(states), 1, dtype=torch.float64)], dim=1)

    def accuracy(name: str) -> float:
        named = [caption.attributes.get(name, "") for caption in captions]
        values = sorted(set(named))
        target = torch.tensor([values.index(value) for value in named])
        fit, unseen = inputs[:num_train], inputs[num_train:]
        one_hot: Tensor = torch.nn.functional.one_hot(target[:num_train], len(values)).double()
        ridge = 1e-3 * num_train * torch.eye(inputs.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(fit.T @ fit + ridge, fit.T @ one_hot)
        said = [i for i, value in enumerate(named[num_train:]) if value]
        guess = (unseen @ weights)[said].argmax(1)
        return float((guess == target[num_train:][said]).double().mean())

    return {name: accuracy(name) for name in PROBED}


def test_shipped_states_carry_the_attributes() -> None:
    accuracy = probe_accuracy(CaptionEncoder.load(SHIPPED, CaptionConfig()), 1500, 300)
    assert np.mean(list(accuracy.values())) > 0.9, accuracy
