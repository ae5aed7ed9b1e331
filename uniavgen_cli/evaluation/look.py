"""A probe that looks at one drawn person: who it is, and the attributes that captions name.

One small network with two kinds of heads, trained here in minutes on people that no model of ours knows,
worn as decoded frames are. Who it is, it learns from pairs of pictures of one person in other clothes, in
front of another wall and in another mood (contrastively, SimCLR's loss, arXiv 2002.05709).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen_cli.data.avatar import (
    EMOTIONS,
    MOUTH_PARAMETERS,
    Identity,
    render,
    sample_identity,
    sample_motion,
)
from uniavgen_cli.data.identity import COLOURS, HAIRS, SKINS
from uniavgen_cli.evaluation.opening import worn
from uniavgen_cli.evaluation.probes import Report, kept, taught, unheard

SEED = 7_000_057  # apart from the seeds of model training
SIDE = 96  # pixels of the square that is looked at
COLOUR_CELLS = 12  # across and down, whose mean colours are read as they are
LOOKS = 3  # pictures of a person, each in other clothes and another mood
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair_colour": ("none", *HAIRS),
    "hair_style": ("bald", "short", "curly", "long", "bob", "bun", "wavy", "ponytail"),
    "skin": tuple(SKINS),
    "glasses": ("none", "yes"),
    "background_colour": tuple(COLOURS),
}
_CLOTHES_AND_PLACE = (
    "collar", "shirt_name", "shirt", "trim", "background", "background_name", "background_rgb",
    "background_rgb2", "light", "scale", "position",
)  # fmt: skip
_TEMPERATURE = 0.1


@dataclass(frozen=True)
class Look:
    """What is seen in n frames: chances of each attribute's values (n, k), and embeddings (n, 48)."""

    attributes: dict[str, np.ndarray]
    people: np.ndarray


class LookProbe(nn.Module):
    """Pictures (n, 3, 96, 96) in [-1, 1] to logits of attributes and embeddings of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_layer(3, 24, 2), *_layer(24, 32, 2), *_layer(32, 48, 1), *_layer(48, 64, 2), *_layer(64, 96, 2)
        )
        # norms take away how light a picture is, and skins differ by little else
        self.colours = nn.AdaptiveAvgPool2d(COLOUR_CELLS)
        inside = 96 * (SIDE // 16) ** 2 + 3 * COLOUR_CELLS**2
        self.hidden = nn.Sequential(nn.Linear(inside, 192), nn.GELU())
        self.attributes = nn.ModuleDict({n: nn.Linear(192, len(v)) for n, v in ATTRIBUTES.items()})
        self.people = nn.Linear(192, 48)

    def forward(self, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        seen = torch.cat((self.trunk(pictures).flatten(1), self.colours(pictures).flatten(1)), dim=1)
        x = self.hidden(seen)  # (n, 192)
        named = {name: head(x) for name, head in self.attributes.items()}
        return named, F.normalize(self.people(x), dim=-1)

    @torch.inference_mode()
    def look(self, frames: np.ndarray) -> Look:
        """What is seen in frames (n, h, w, 3) uint8 of one drawn person, each on its own."""
        named, people = self(_pixels(np.stack([squared(frame) for frame in frames])))
        return Look(
            {name: logits.softmax(-1).numpy() for name, logits in named.items()},
            people.numpy(),
        )


def _layer(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.GELU()


def squared(frame: np.ndarray) -> np.ndarray:
    """The middle square of a frame (h, w, 3), at SIDE pixels."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = frame[top : top + side, left : left + side]
    shrinks = side > SIDE
    return cv2.resize(middle, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


@dataclass(frozen=True)
class Person:
    """Pictures (n, 128, 128, 3) uint8 of somebody, and the attributes of each as numbers."""

    frames: np.ndarray
    attributes: np.ndarray  # (n, len(ATTRIBUTES))


def drawn_person(seed: int, number: int, looks: int = LOOKS, frames_each: int = 2) -> Person:
    """Person `number` of a seed in some looks: hair, skin, glasses and measures stay, the rest changes."""
    rng = np.random.default_rng([seed, number])
    who = sample_identity(rng)
    frames, attributes = [], []
    for _ in range(looks):
        dressed = elsewhere(who, sample_identity(rng))
        emotion = EMOTIONS[int(rng.integers(len(EMOTIONS)))]
        mouth = rng.random((frames_each, len(MOUTH_PARAMETERS))) ** 2
        motion = sample_motion(rng, frames_each, 0.7, emotion)  # frames lie far apart in time
        frames.append(render(dressed, emotion, mouth, motion).frames)
        seen = dressed.attributes
        attributes += [[values.index(seen[name]) for name, values in ATTRIBUTES.items()]] * frames_each
    return Person(np.concatenate(frames), np.array(attributes))


def elsewhere(who: Identity, other: Identity) -> Identity:
    """`who` in the clothes and in front of the wall of `other`, where that stands in its picture."""
    return replace(who, **{name: getattr(other, name) for name in _CLOTHES_AND_PLACE})


def train_look_probe(
    *,
    steps: int = 1500,
    num_people: int = 2000,
    batch_size: int = 32,
    seed: int = SEED,
    report: Report = unheard,
) -> LookProbe:
    """A probe trained on `num_people` drawn for it, in pairs of pictures; about nine minutes on one core."""
    people = [drawn_person(seed, number) for number in range(num_people)]
    return taught(
        LookProbe,
        lambda probe, rng: _loss(probe, people, batch_size, rng),
        steps=steps,
        seeds=(seed, num_people),
        report=report,
    )


def load_look_probe(path: Path) -> LookProbe:
    """The probe kept at `path`; trained and kept there first when the file is missing."""
    return kept(path, LookProbe, train_look_probe)


def _loss(probe: LookProbe, people: list[Person], batch_size: int, rng: np.random.Generator) -> Tensor:
    chosen = rng.choice(len(people), size=min(batch_size, len(people)), replace=False)
    pictures, attributes = [], []
    for number in chosen:
        person = people[number]
        for i in rng.choice(len(person.frames), size=2, replace=False):
            pictures.append(squared(worn(_moved(person.frames[i], rng), rng)))
            attributes.append(person.attributes[i])
    named, embedded = probe(_pixels(np.stack(pictures)))
    truths = torch.tensor(np.array(attributes))
    loss = 0.5 * contrast(embedded)
    for column, logits in enumerate(named.values()):
        loss = loss + F.cross_entropy(logits, truths[:, column]) / len(named)
    return loss


def contrast(embedded: Tensor) -> Tensor:
    """How hard it is to find each one's partner: rows (2 n, d) of length 1, partners one after the other."""
    likeness = embedded @ embedded.T / _TEMPERATURE
    likeness.fill_diagonal_(-torch.inf)
    return F.cross_entropy(likeness, torch.arange(len(embedded)) ^ 1)


def _moved(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The frame shifted and zoomed a little."""
    zoom, (x, y) = float(np.exp(rng.normal(0, 0.05))), rng.normal(0, 3, 2)
    middle = np.array(frame.shape[1::-1]) / 2
    move = np.array([[zoom, 0, middle[0] * (1 - zoom) + x], [0, zoom, middle[1] * (1 - zoom) + y]])
    return cv2.warpAffine(frame, move, frame.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)


def _pixels(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1  # n c h w
