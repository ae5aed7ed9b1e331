"""Who an avatar is: measures, colours and the names of what is seen, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from uniavgen_cli.data.colour import Colour, mix, shade

SKINS: dict[str, Colour] = {
    "pale": (255, 222, 200),
    "fair": (246, 204, 174),
    "light": (236, 186, 148),
    "olive": (214, 164, 118),
    "tan": (196, 140, 96),
    "brown": (160, 106, 70),
    "dark brown": (118, 76, 50),
    "dark": (84, 54, 38),
}
HAIRS: dict[str, tuple[Colour, Colour]] = {
    "black": ((22, 20, 24), (44, 36, 36)),
    "brown": ((62, 36, 20), (110, 66, 36)),
    "auburn": ((104, 42, 22), (130, 56, 28)),
    "red": ((164, 52, 20), (206, 84, 32)),
    "blonde": ((206, 160, 80), (240, 206, 128)),
    "grey": ((136, 136, 140), (196, 196, 200)),
    "white": ((222, 220, 216), (240, 238, 234)),
    "blue": ((40, 80, 190), (70, 140, 220)),
    "purple": ((104, 40, 150), (146, 76, 190)),
    "pink": ((214, 70, 140), (240, 130, 180)),
    "green": ((30, 130, 80), (80, 170, 100)),
}
COLOURS: dict[str, Colour] = {
    "red": (176, 46, 46),
    "orange": (222, 128, 48),
    "yellow": (222, 194, 84),
    "green": (70, 140, 84),
    "teal": (48, 140, 140),
    "blue": (58, 96, 180),
    "purple": (112, 74, 158),
    "pink": (220, 136, 166),
    "brown": (120, 84, 60),
    "grey": (128, 130, 136),
    "black": (38, 38, 44),
    "white": (232, 232, 230),
    "navy": (34, 44, 92),
    "beige": (212, 192, 160),
}
_FRAMES: dict[str, Colour] = {
    "black": (28, 26, 30),
    "red": (168, 50, 46),
    "blue": (50, 76, 150),
    "silver": (196, 202, 214),
    "brown": (104, 64, 36),
    "gold": (196, 156, 74),
}
_EYES = ((84, 52, 28), (58, 36, 22), (70, 116, 178), (88, 138, 92), (120, 134, 146), (136, 96, 46))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """All that makes one avatar: measures in face units, colours RGB 0..255, and names for what is seen."""

    gender: str
    seed: int  # textures: hair strands, freckles, lights of the background
    skin_name: str
    skin: Colour
    face_width: float
    jaw_width: float
    hair_style: str
    fringe: str
    fringe_flip: int
    hair_name: str
    hair: Colour
    hair_volume: float
    hair_length: float
    stubble_scalp: bool
    eye_rgb: Colour
    eye_gap: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    lashes: float
    eyeshadow: Colour | None
    brow_rgb: Colour
    brow_width: float
    brow_arch: float
    brow_height: float
    nose_width: float
    nose_tip: float
    mouth_width: float
    mouth_y: float
    lip_upper: float
    lip_lower: float
    lip_rgb: Colour
    blush: float
    freckles: bool
    beard: str
    glasses: str
    glasses_name: str
    glasses_rgb: Colour
    glasses_width: float
    earrings: str
    neck_width: float
    shoulders: float
    collar: str
    shirt_name: str
    shirt: Colour
    trim: Colour
    necklace: str
    background: str
    background_name: str
    background_rgb: Colour
    background_rgb2: Colour
    light: float  # -1 from the left .. 1 from the right
    scale: float  # 1: the face is half as high as the frame's short side
    position: tuple[float, float]  # middle of the face, in shares of the free width and of the height

    @property
    def fringe_covers(self) -> bool:
        """Whether hair throws a shadow on the forehead."""
        return self.hair_style != "bald" and self.fringe != "none"

    @property
    def attributes(self) -> dict[str, str]:
        """What is seen, by name: the truth that captions are made from."""
        seen = {
            "gender": self.gender,
            "hair_colour": "none" if self.hair_style == "bald" else self.hair_name,
            "hair_style": self.hair_style,
            "fringe": "none" if self.hair_style == "bald" else self.fringe,
            "skin": self.skin_name,
            "glasses": "none" if self.glasses == "none" else "yes",
            "glasses_shape": self.glasses,
            "glasses_colour": self.glasses_name if self.glasses != "none" else "none",
            "beard": self.beard,
            "freckles": "yes" if self.freckles else "none",
            "earrings": "none" if self.earrings == "none" else "yes",
            "earrings_kind": self.earrings,
            "necklace": "none" if self.necklace == "none" else "yes",
            "necklace_kind": self.necklace,
            "clothes": self.collar,
            "clothes_colour": self.shirt_name,
            "background": self.background,
            "background_colour": self.background_name,
        }
        return seen


def _pick(rng: np.random.Generator, choices: dict[str, float]) -> str:
    weights = np.array(list(choices.values()))
    return str(rng.choice(list(choices), p=weights / weights.sum()))


class _Near:
    """Numbers from a generator, `variety` times as far from the middle of what they may be."""

    def __init__(self, rng: np.random.Generator, variety: float) -> None:
        self.rng, self.variety = rng, variety

    def uniform(self, low: float, high: float) -> float:
        return self.nearer(self.rng.uniform(low, high), (low + high) / 2)

    def normal(self, mean: float, deviation: float) -> float:
        return self.nearer(self.rng.normal(mean, deviation), mean)

    def nearer(self, value: float, middle: float) -> float:
        return float(value if self.variety == 1 else middle + self.variety * (value - middle))


def _jitter(near: _Near, colour: Colour, amount: float) -> Colour:
    lightness = near.normal(0, amount)
    return tuple(float(np.clip(c + lightness + near.normal(0, amount * 0.5), 6, 250)) for c in colour)  # type: ignore[return-value]


def sample_identity(rng: np.random.Generator, variety: float = 1.0) -> Identity:
    """Draw a person at random; the same generator state gives the same person.

    With less `variety` (0..1) people differ as much in what a caption can name, and that much less in what
    none does: measures, shades, place in the picture; below one half all have the same textures and extras.
    """
    near = _Near(rng, variety)
    u = near.uniform
    man = bool(rng.random() < 0.5)
    names, tones = list(SKINS), np.array(list(SKINS.values()))
    place = rng.uniform(0, len(names) - 1)
    tone = near.nearer(place, round(place))
    low = min(int(tone), len(names) - 2)
    skin = _jitter(near, mix(tuple(tones[low]), tuple(tones[low + 1]), tone - low), 4)
    hair_name = _pick(
        rng,
        {
            "black": 5,
            "brown": 6,
            "auburn": 1.5,
            "red": 2.5,
            "blonde": 4.5,
            "grey": 2,
            "white": 0.8,
            "blue": 0.9,
            "purple": 0.9,
            "pink": 0.9,
            "green": 0.5,
        },
    )
    hair = _jitter(near, mix(*HAIRS[hair_name], u(0, 1)), 4)
    if man:
        style = _pick(
            rng, {"bald": 3, "short": 9, "curly": 3, "long": 1.2, "bob": 0.8, "bun": 1, "wavy": 0.6}
        )
        fringe = _pick(rng, {"none": 4, "side": 3, "choppy": 3, "straight": 1.5, "parted": 1.5})
        beard = _pick(rng, {"none": 9, "stubble": 3, "full": 4, "goatee": 2, "moustache": 2})
    else:
        style = _pick(rng, {"long": 6, "wavy": 4, "bob": 4, "curly": 3, "bun": 3, "ponytail": 2, "short": 2})
        fringe = _pick(rng, {"straight": 3, "side": 3, "parted": 3.5, "none": 2, "choppy": 1})
        beard = "none"
    lip = mix(skin, (176, 60, 60), u(0.35, 0.5))
    if not man and rng.random() < 0.55:
        lip = mix(
            skin,
            [(186, 24, 48), (196, 62, 96), (150, 40, 70), (204, 84, 70)][int(rng.integers(4))],
            u(0.55, 0.85),
        )
    glasses = _pick(rng, {"none": 6.5, "round": 2, "square": 1.8})
    glasses_name = _pick(rng, {"black": 4, "red": 1.5, "blue": 1.2, "silver": 1, "brown": 1.5, "gold": 1})
    shirt_name, wall_name, wall2_name, trim_name = (
        str(x) for x in rng.choice(list(COLOURS), 4, replace=False)
    )
    wall = _jitter(
        near,
        mix(
            COLOURS[wall_name],
            (226, 226, 226),
            u(0.02, 0.1 if wall_name in ("black", "navy", "brown") else 0.35),
        ),
        8,
    )
    kind = _pick(rng, {"plain": 2.5, "gradient": 2, "radial": 2, "bokeh": 2, "shapes": 2})
    other = (
        mix(wall, COLOURS[wall2_name], 0.45)
        if kind == "shapes"
        else mix(wall, shade(wall, u(0.45, 0.7)), 0.9)
    )
    who = Identity(
        gender="man" if man else "woman",
        seed=int(rng.integers(2**31)),
        skin_name=names[int(round(place))],
        skin=skin,
        face_width=u(0.76, 0.87) + 0.02 * man,
        jaw_width=u(0.5, 0.95) if man else u(0.2, 0.6),
        hair_style=style,
        fringe=fringe,
        fringe_flip=int(rng.choice((-1, 1))),
        hair_name=hair_name,
        hair=hair,
        hair_volume=u(0.22, 0.42) if style == "curly" else u(0.08, 0.2),
        hair_length={"bob": u(0.7, 0.95), "curly": u(0.95, 1.35)}.get(style, u(1.5, 2.6)),
        stubble_scalp=bool(rng.random() < 0.6),
        eye_rgb=_jitter(near, _EYES[int(rng.integers(2 if place > 4.5 else len(_EYES)))], 8),
        eye_gap=u(0.335, 0.385),
        eye_width=u(0.155, 0.185),
        eye_height=u(0.085, 0.112) - 0.012 * man,
        eye_tilt=u(-0.02, 0.035),
        lashes=u(0.018, 0.026) if man else u(0.03, 0.048),
        eyeshadow=None if man or rng.random() < 0.6 else mix(skin, tuple(rng.uniform(60, 200, 3)), 0.5),
        brow_rgb=mix(
            shade(hair, 0.7) if hair_name not in ("grey", "white") else shade(hair, 0.75),
            shade(skin, 0.45),
            0.25,
        ),
        brow_width=u(0.055, 0.085) if man else u(0.035, 0.055),
        brow_arch=u(0.02, 0.05) if man else u(0.035, 0.075),
        brow_height=u(-0.36, -0.31),
        nose_width=u(0.13, 0.18) if man else u(0.105, 0.15),
        nose_tip=u(0.19, 0.27),
        mouth_width=u(0.27, 0.325),
        mouth_y=u(0.535, 0.58),
        lip_upper=u(0.04, 0.06) if man else u(0.055, 0.08),
        lip_lower=u(0.055, 0.08) if man else u(0.075, 0.105),
        lip_rgb=lip,
        blush=u(0.05, 0.2) if man else u(0.15, 0.4),
        freckles=bool(place < 4.2 and rng.random() < 0.2),
        beard=beard,
        glasses=glasses,
        glasses_name=glasses_name,
        glasses_rgb=_FRAMES[glasses_name],
        glasses_width=u(0.03, 0.055),
        earrings=_pick(
            rng, {"none": 9, "gold": 0.6, "silver": 0.4} if man else {"none": 5, "gold": 3, "silver": 2}
        ),
        neck_width=u(0.42, 0.5) if man else u(0.32, 0.37),
        shoulders=u(1.5, 1.8) if man else u(1.25, 1.5),
        collar=_pick(rng, {"crew": 3, "v": 2, "shirt": 3.5, "zip": 1.5, "scoop": 0.3 if man else 2}),
        shirt_name=shirt_name,
        shirt=_jitter(near, COLOURS[shirt_name], 10),
        trim=_jitter(near, mix(COLOURS[trim_name], (255, 255, 255), 0.3), 8),
        necklace=_pick(
            rng, {"none": 9, "silver": 0.5} if man else {"none": 5, "gold": 2, "silver": 1.5, "beaded": 1.5}
        ),
        background=kind,
        background_name=wall_name,
        background_rgb=wall,
        background_rgb2=other,
        light=float(u(-1, 1)),
        scale=float(np.clip(near.normal(0.98, 0.1), 0.72, 1.25)),
        position=(near.normal(0, 0.05), u(0.49, 0.54)),
    )
    return who if variety >= 0.5 else replace(who, **_usual(who))


def _usual(who: Identity) -> dict[str, Any]:
    """The extras and textures that no caption names, as those who differ little have them."""
    return {
        "seed": 0,
        "fringe_flip": 1,
        "stubble_scalp": False,
        "eye_rgb": _EYES[0],
        "eyeshadow": None,
        "lip_rgb": mix(who.skin, (176, 60, 60), 0.43 if who.gender == "man" else 0.6),
        "trim": (200.0, 200.0, 200.0),
        "background_rgb2": mix(who.background_rgb, shade(who.background_rgb, 0.58), 0.9),
    }
