"""What the caption encoder learns from: captions of drawn people, and which attributes each of them names."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from uniavgen_cli.codecs.caption import PAD, UNKNOWN, CaptionConfig, CaptionEncoder, split_words
from uniavgen_cli.data.avatar import EMOTIONS, sample_identity
from uniavgen_cli.data.captions import Caption, describe
from uniavgen_cli.training.trainer import Batch, Stage

NOT_NAMED = ""  # the value of an attribute of which a caption says nothing
HELD_OUT = 1 << 40  # captions from here on are beyond any training step


class CaptionReader(nn.Module):
    """The encoder and, for training alone, one linear reading of its mean state an attribute."""

    def __init__(
        self, config: CaptionConfig, vocabulary: tuple[str, ...], values: dict[str, tuple[str, ...]]
    ) -> None:
        super().__init__()
        self.encoder = CaptionEncoder(config, vocabulary)
        self.values = values
        self.readings = nn.ModuleDict({name: nn.Linear(config.dim, len(values[name])) for name in values})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Logits (b, values) of every attribute, of token ids (b, t)."""
        mean = mean_state(self.encoder(tokens))
        return {name: reading(mean) for name, reading in self.readings.items()}


def caption_stage(
    config: CaptionConfig,
    *,
    steps: int = 2500,
    lr: float = 1e-3,
    batch_size: int = 32,
    surveyed: int = 8000,
    seed: int = 0,
) -> Stage:
    """The stage that trains a caption encoder of `config`, its vocabulary surveyed from the captions."""
    torch.manual_seed(seed)
    vocabulary, values = survey(surveyed)
    module = CaptionReader(config, vocabulary, values)
    return Stage(
        name="caption",
        module=module,
        batch=lambda step: batch(module.encoder, values, step, batch_size=batch_size, seed=seed),
        loss=loss,
        export=lambda weights, folder: export(weights, vocabulary, folder / "caption.safetensors"),
        steps=steps,
        lr=lr,
    )


def drawn_caption(number: int, seed: int = 0) -> Caption:
    """Caption number `number` of a random person in a random mood."""
    rng = np.random.default_rng((seed, number))
    return describe(sample_identity(rng), str(rng.choice(EMOTIONS)), rng)


def survey(count: int) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The words that captions use more than twice, and the values that each attribute takes in them."""
    words: Counter[str] = Counter()
    seen: dict[str, set[str]] = {}
    for number in range(HELD_OUT, HELD_OUT + count):
        caption = drawn_caption(number)
        words.update(split_words(caption.text))
        for name, value in caption.attributes.items():
            seen.setdefault(name, {NOT_NAMED}).add(value)
    vocabulary = tuple(sorted(word for word, times in words.items() if times > 2))
    return vocabulary, {name: tuple(sorted(seen[name])) for name in sorted(seen)}


def batch(
    encoder: CaptionEncoder,
    values: dict[str, tuple[str, ...]],
    step: int,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> Batch:
    """`tokens` (b, t) with words lost and unknown ones put in; `targets` (b, attributes), what they name."""
    captions = [drawn_caption(step * batch_size + i, seed) for i in range(batch_size)]
    rng = np.random.default_rng((seed, step, 1))
    tokens = disturb(encoder.tokenize([caption.text for caption in captions]), rng)

    def target(caption: Caption, name: str) -> int:
        value = caption.attributes.get(name, NOT_NAMED)
        return values[name].index(value if value in values[name] else NOT_NAMED)

    targets = [[target(caption, name) for name in values] for caption in captions]
    return {"tokens": tokens, "targets": torch.tensor(targets)}


def disturb(tokens: Tensor, rng: np.random.Generator) -> Tensor:
    """Token ids (b, t) as a hasty writer or another vocabulary would leave them."""
    disturbed = torch.full_like(tokens, PAD)
    for i, row in enumerate(tokens.tolist()):
        words = [word for word in row if word != PAD and rng.random() > 0.02]
        for _ in range(rng.poisson(1.5)):
            words.insert(int(rng.integers(len(words) + 1)), UNKNOWN)
        words = words[: tokens.shape[1]]
        disturbed[i, : len(words)] = torch.tensor(words, dtype=torch.int64)
    return disturbed


def loss(module: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
    """Cross-entropy (b,) of the attributes, summed over them."""
    logits = module(batch["tokens"]).values()
    targets = batch["targets"].unbind(1)
    each = [F.cross_entropy(*pair, reduction="none") for pair in zip(logits, targets, strict=True)]
    return {"attributes": torch.stack(each).sum(0)}


def export(weights: dict[str, Tensor], vocabulary: tuple[str, ...], path: Path) -> None:
    """Save the encoder's averaged weights in bfloat16, the vocabulary beside them."""
    prefix = "encoder."
    state = {
        name.removeprefix(prefix): value.bfloat16().contiguous()
        for name, value in weights.items()
        if name.startswith(prefix)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"vocabulary": json.dumps(vocabulary)})


def mean_state(states: Tensor) -> Tensor:
    """The mean (b, d) of states (b, t, d) over a caption's words; zero for an empty caption."""
    words = (states != 0).any(-1).sum(-1, keepdim=True)
    return states.sum(1) / words.clamp(min=1)
