"""Captions for avatars, in the varied words that people use to ask for one, and what each of them names."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from uniavgen_cli.data.identity import Identity


@dataclass(frozen=True)
class Caption:
    """A caption and the attributes that its text names, by the keys of Identity.attributes and "emotion"."""

    text: str
    attributes: dict[str, str]


_NOUNS = {
    "woman": ("woman", "woman", "woman", "woman", "lady", "young woman", "female speaker", "girl"),
    "man": ("man", "man", "man", "man", "guy", "young man", "male speaker", "gentleman"),
}
_HAIR_COLOURS = {
    "black": ("black", "black", "black", "jet-black", "dark"),
    "brown": ("brown", "brown", "brown", "chestnut", "dark brown"),
    "auburn": ("auburn", "auburn", "reddish brown"),
    "red": ("red", "red", "red", "ginger", "bright red"),
    "blonde": ("blonde", "blonde", "blond", "golden", "fair"),
    "grey": ("grey", "grey", "gray", "silver"),
    "white": ("white", "white", "snow-white"),
}
_HAIR_STYLES = {
    "short": ("short {} hair", "short {} hair", "cropped {} hair", "a short {} haircut", "{} hair"),
    "bob": ("a {} bob", "{} hair in a bob", "chin-length {} hair", "medium-length {} hair", "{} hair"),
    "long": ("long {} hair", "long {} hair", "long straight {} hair", "straight {} hair", "{} hair"),
    "wavy": ("long wavy {} hair", "wavy {} hair", "{} waves", "{} hair"),
    "curly": ("curly {} hair", "curly {} hair", "{} curls", "a {} afro", "{} hair"),
    "bun": ("{} hair in a bun", "a {} bun", "{} hair tied up in a bun", "{} hair"),
    "ponytail": ("a {} ponytail", "{} hair in a ponytail", "{} hair"),
}  # the last of each names no style
_FRINGES = {
    "straight": ("bangs", "straight bangs", "a straight fringe", "a fringe"),
    "side": ("a side parting", "side-swept bangs"),
    "parted": ("a middle parting", "curtain bangs"),
    "choppy": ("choppy bangs", "an uneven fringe"),
    "none": ("a bare forehead", "swept-back hair"),
}
_SKINS = {
    "pale": ("pale", "very light"),
    "fair": ("fair", "light"),
    "light": ("light", "fair"),
    "olive": ("olive", "tanned"),
    "tan": ("tan", "tanned"),
    "brown": ("brown",),
    "dark brown": ("dark brown", "dark"),
    "dark": ("dark", "very dark"),
}
_BEARDS = {
    "stubble": ("stubble", "a stubbly chin", "some stubble"),
    "full": ("a beard", "a full beard", "a bushy beard"),
    "goatee": ("a goatee", "a chin beard"),
    "moustache": ("a moustache", "a mustache"),
}
_CLOTHES = {
    "crew": ("sweater", "t-shirt", "jumper", "top"),
    "v": ("v-neck", "v-neck sweater", "top"),
    "shirt": ("shirt", "collared shirt", "polo shirt"),
    "zip": ("jacket", "zipped jacket", "cardigan"),
    "scoop": ("top", "blouse", "dress"),
}
_EMOTIONS = {
    "neutral": ("calm", "with a neutral expression", "looking neutral", "with a calm face"),
    "happy": ("smiling", "happy", "looking happy", "with a smile", "cheerful", "grinning"),
    "sad": ("sad", "looking sad", "unhappy", "with a sad face", "gloomy"),
    "angry": ("angry", "looking angry", "furious", "with an angry face", "frowning"),
    "surprised": ("surprised", "looking surprised", "astonished", "with raised eyebrows, surprised"),
    "afraid": ("afraid", "scared", "looking frightened", "fearful", "with a scared face"),
    "disgusted": ("disgusted", "looking disgusted", "with a disgusted face"),
}
_FELT = {  # words that ask for an emotion
    "happy": "happy|happily|smiles?|smiling|cheerful|cheerfully|grins?|grinning|laughs?|laughing|joyful|glad",
    "sad": "sad|sadly|unhappy|unhappily|gloomy|sorrowful|crying|weeping|depressed",
    "angry": "angry|angrily|furious|furiously|frowns?|frowning|annoyed|enraged",
    "surprised": "surprised|astonished|amazed|shocked",
    "afraid": "afraid|scared|frightened|fearful|fearfully|terrified",
    "disgusted": "disgusted",
}
_BACKGROUNDS = {
    "plain": (
        "in front of a {} wall",
        "against a plain {} background",
        "on a {} background",
        "before a {} wall",
    ),
    "gradient": (
        "in front of a {} wall",
        "against a {} background",
        "on a {} gradient",
        "before a {} backdrop",
    ),
    "radial": (
        "in front of a {} wall",
        "against a {} background",
        "on a softly lit {} background",
        "before a {} backdrop",
    ),
    "bokeh": (
        "in front of blurred {} lights",
        "with {} lights out of focus behind",
        "against a {} background with lights",
        "with round lights on {} behind",
    ),
    "shapes": (
        "in front of a blurred {} room",
        "in a blurred {} room",
        "against a blurred {} background",
        "with blurred {} shapes behind",
    ),
}
_OPENINGS = (
    "",
    "",
    "",
    "",
    "",
    "",
    "a portrait of ",
    "a close-up of ",
    "a video of ",
    "a cartoon of ",
    "an avatar of ",
)
_ENDINGS = (" speaking", ", speaking", " talking", ", talking to the camera", ", says", " says")


def _one(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def describe(identity: Identity, emotion: str, rng: np.random.Generator) -> Caption:
    """Put an avatar into words: hair colour and gender nearly always, the rest sometimes, in any order."""
    seen = identity.attributes
    named: dict[str, str] = {}

    def told(chance: float, **facts: str) -> bool:
        """Decide whether to name some attributes, and note them as named."""
        if rng.random() >= chance:
            return False
        named.update(facts)
        return True

    gender = seen["gender"]
    noun = _one(rng, _NOUNS[gender]) if told(0.97, gender=gender) else "person"
    before: list[str] = []  # adjectives
    having: list[str] = []  # after "with"
    wearing: list[str] = []

    if seen["hair_style"] == "bald":
        if told(0.95, hair_style="bald", hair_colour="none"):
            if rng.random() < 0.7:
                before.append("bald")
            else:
                having.append(_one(rng, ("a shaved head", "no hair", "a bald head")))
    elif told(0.95, hair_colour=seen["hair_colour"]):
        colour = seen["hair_colour"]
        word = _one(rng, _HAIR_COLOURS.get(colour, (colour, colour, f"dyed {colour}", f"bright {colour}")))
        if rng.random() < 0.15:
            before.append("blonde" if colour == "blonde" else f"{word.split()[-1]}-haired")
        else:
            styles = _HAIR_STYLES[seen["hair_style"]]
            phrase = _one(rng, styles)
            if phrase != styles[-1]:
                named["hair_style"] = seen["hair_style"]
            having.append(_one_article(phrase.format(word)))
        if told(0.22, fringe=seen["fringe"]):
            having.append(_one(rng, _FRINGES[seen["fringe"]]))
    if told(0.3, skin=seen["skin"]):
        tone = _one(rng, _SKINS[seen["skin"]])
        if rng.random() < 0.4:
            before.insert(0, f"{tone}-skinned".replace(" ", "-"))
        else:
            having.append(f"{tone} skin")
    if seen["beard"] != "none" and told(0.85, beard=seen["beard"]):
        having.append(_one(rng, _BEARDS[seen["beard"]]))
    if seen["glasses"] != "none" and told(0.88, glasses="yes"):
        words = []
        if told(0.3, glasses_colour=seen["glasses_colour"]):
            words.append(seen["glasses_colour"])
        if told(0.65, glasses_shape=seen["glasses_shape"]):
            words.append(seen["glasses_shape"])
        words.append(_one(rng, ("glasses", "glasses", "spectacles")))
        (having if rng.random() < 0.6 else wearing).append(" ".join(words))
    elif seen["glasses"] == "none" and told(0.04, glasses="none"):
        having.append("no glasses")
    if seen["freckles"] != "none" and told(0.6, freckles="yes"):
        having.append("freckles")
    for jewel in ("earrings", "necklace"):
        if seen[jewel] != "none" and told(0.4, **{jewel: "yes"}):
            kind = seen[f"{jewel}_kind"]
            phrase = f"{kind} {jewel}" if told(0.7, **{f"{jewel}_kind": kind}) else jewel
            (having if rng.random() < 0.4 else wearing).append(
                _article(phrase) if jewel == "necklace" else phrase
            )
    if told(0.4, clothes_colour=seen["clothes_colour"]):
        garment = _one(rng, _CLOTHES[seen["clothes"]])
        if garment != "top":
            named["clothes"] = seen["clothes"]
        wearing.append(_article(f"{seen['clothes_colour']} {garment}"))

    rng.shuffle(having)
    rng.shuffle(wearing)
    place = feeling = ""
    if told(0.75, background_colour=seen["background_colour"]):
        if seen["background"] in (
            "bokeh",
            "shapes",
        ):  # the words for a plain, shaded or lit wall are the same
            named["background"] = seen["background"]
        place = _one_article(_one(rng, _BACKGROUNDS[seen["background"]]).format(seen["background_colour"]))
    if told(0.4 if emotion == "neutral" else 0.85, emotion=emotion):
        feeling = _one(rng, _EMOTIONS[emotion])
    return Caption(_sentence(rng, noun, before, having, wearing, feeling, place), named)


def emotion_named(text: str) -> str:
    """The emotion that words ask for; "neutral" where they name none, or several."""
    named = {emotion for emotion, words in _FELT.items() if re.search(rf"\b({words})\b", text.lower())}
    return named.pop() if len(named) == 1 else "neutral"


def _one_article(phrase: str) -> str:
    """Correct "a" before a vowel that a filled-in colour brought: "a orange wall" -> "an orange wall"."""
    words = phrase.split(" ")
    for i in range(len(words) - 1):
        if words[i] == "a" and words[i + 1][0] in "aeio":
            words[i] = "an"
    return " ".join(words)


def _sentence(
    rng: np.random.Generator,
    noun: str,
    before: list[str],
    having: list[str],
    wearing: list[str],
    feeling: str,
    place: str,
) -> str:
    if rng.random() < 0.08:  # a bare list, as typed in haste
        text = ", ".join(
            [
                " ".join([*before, noun]),
                *having,
                *wearing,
                *([feeling] if feeling else []),
                *([place] if place else []),
            ]
        )
        return text[0].upper() + text[1:] if rng.random() < 0.3 else text
    single = feeling if feeling and " " not in feeling and not feeling.endswith("ing") else ""
    if single and rng.random() < 0.45:
        before, feeling = [single, *before], ""
    text = _one(rng, _OPENINGS) + _article(", ".join(before) + (" " if before else "") + noun)
    if having:
        text += " with " + _joined(having)
    if wearing:
        text += _one(rng, (" wearing ", " in ", ", wearing ")) + _joined(wearing)
    tail = [f", {feeling}" if feeling else "", f"{_one(rng, (', ', ' '))}{place}" if place else ""]
    if rng.random() < 0.3:
        tail.reverse()
    text += "".join(tail)
    if rng.random() < 0.4:
        text += _one(rng, _ENDINGS)
    return text[0].upper() + text[1:] if rng.random() < 0.7 else text
