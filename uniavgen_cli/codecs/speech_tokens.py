"""Speech text as indices: one character each for nano, F5-TTS tokens for the released checkpoint. No torch.

Source of the released tokens: F5-TTS (arXiv 2410.06885); English is its characters, Chinese its syllables in
pinyin with their tone, each after a space.
"""

import importlib.util
import logging
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from uniavgen_cli.errors import UsageError, WeightsError

NUM_CHARACTERS = 128
LANGUAGES = ("auto", "en", "zh")
_IDEOGRAPH = re.compile(r"[\u3100-\u9fff]")
_STANDS_APART = " :'\""  # after one of these an English word needs no space


def character_indices(text: str) -> list[int]:
    """Nano's: the ASCII code of each character; 0, a filler, for any other."""
    return [code if (code := ord(c)) < NUM_CHARACTERS else 0 for c in text]


def language_of(text: str, asked: str = "auto") -> str:
    """ "en" or "zh": what was asked for, or, for auto, Chinese where there is an ideograph.

    Raises UsageError for a language there is not, and when Chinese needs packages that are not installed.
    """
    if asked not in LANGUAGES:
        raise UsageError(f"--language {asked} is not known", f"give {', '.join(LANGUAGES)}")
    language = asked if asked != "auto" else "zh" if _IDEOGRAPH.search(text) else "en"
    missing = [name for name in ("jieba", "pypinyin") if importlib.util.find_spec(name) is None]
    if language == "zh" and missing:
        raise UsageError(
            f"Chinese speech needs {' and '.join(missing)}, not installed", "pip install 'uniavgen[zh]'"
        )
    return language


def num_syllables(text: str) -> int:
    """Ideographs in a text, each of which is a syllable."""
    return len(_IDEOGRAPH.findall(text))


def speech_tokens(text: str, language: str = "en") -> list[str]:
    """The released model's tokens of a text in "en" or "zh"."""
    if language == "en":
        return list(text)
    tokens: list[str] = []
    for word in _segmenter().cut(text):
        if word.isascii():
            if len(word) > 1 and tokens and tokens[-1] not in _STANDS_APART:
                tokens.append(" ")
            tokens += word
        else:
            tokens += _pinyin(word)
    return tokens


def _pinyin(word: str) -> list[str]:
    """The syllables of a word, each after a space, and its other characters as they stand."""
    from pypinyin import Style, lazy_pinyin

    # a whole word tells how its characters are read; other signs come back one by one, in their places
    one_by_one: Any = list
    syllables = lazy_pinyin(word, style=Style.TONE3, tone_sandhi=True, errors=one_by_one)
    tokens = []
    for character, syllable in zip(word, syllables, strict=True):
        if _IDEOGRAPH.match(character):
            tokens.append(" ")
        tokens.append(syllable)
    return tokens


@cache
def _segmenter() -> Any:
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it tells where it keeps its dictionary
    return jieba


def read_vocabulary(path: Path, size: int) -> dict[str, int]:
    """The index of each token, the number of its line from 0; raises WeightsError unless there are `size`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path} can't be read as a speech vocabulary ({error})", "fetch it again"
        ) from error
    vocabulary = {token: index for index, token in enumerate(text.removesuffix("\n").split("\n"))}
    if len(vocabulary) != size:
        raise WeightsError(
            f"{path} has {len(vocabulary)} tokens and the model knows {size}",
            "it is not the speech vocabulary of these weights",
        )
    return vocabulary


def speech_indices(tokens: list[str], vocabulary: Mapping[str, int]) -> list[int]:
    """Tokens as indices; 0 for those the vocabulary lacks."""
    return [vocabulary.get(token, 0) for token in tokens]
