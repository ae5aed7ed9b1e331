"""Speech text as tokens: languages told apart, Chinese in pinyin, the vocabulary read strictly."""

from pathlib import Path

import pytest

from uniavgen_cli.codecs.speech_tokens import (
    character_indices,
    language_of,
    num_syllables,
    read_vocabulary,
    speech_indices,
    speech_tokens,
)
from uniavgen_cli.errors import UsageError, WeightsError


def test_nano_counts_characters() -> None:
    assert character_indices("Hi é") == [72, 105, 32, 0]


@pytest.mark.parametrize(
    ("text", "asked", "language"),
    [
        ("Hello.", "auto", "en"),
        ("", "auto", "en"),
        ("你好", "en", "en"),
    ],
)
def test_the_language_is_told_by_the_characters(text: str, asked: str, language: str) -> None:
    assert language_of(text, asked) == language


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UsageError, match="--language fr is not known"):
        language_of("Bonjour.", "fr")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello world", list("Hello world")),
        ("你好……", [" ", "ni2", " ", "hao3", "…", "…"]),  # signs stay one by one
        ("“你好”", ["“", " ", "ni2", " ", "hao3", "”"]),
        ("他说OK。", [" ", "ta1", " ", "shuo1", " ", "O", "K", "。"]),
        ("3公斤", ["3", " ", "gong1", " ", "jin1"]),
        ("ひと", ["ひ", "と"]),
        ("长大", [" ", "zhang3", " ", "da4"]),  # the word tells how it is read
        ("长城", [" ", "chang2", " ", "cheng2"]),
    ],
)
def test_chinese_tokens(text: str, tokens: list[str]) -> None:
    pytest.importorskip("jieba")
    pytest.importorskip("pypinyin")
    assert language_of("你" + text) == "zh"
    assert speech_tokens(text, "zh") == tokens


def test_ideographs_are_syllables() -> None:
    assert num_syllables("我有3个苹果 and tea。") == 5


def test_a_vocabulary_is_its_lines(tmp_path: Path) -> None:
    for text in (" \na\nb\n", " \na\nb"):
        (tmp_path / "vocab.txt").write_text(text)
        vocabulary = read_vocabulary(tmp_path / "vocab.txt", 3)
        assert vocabulary == {" ": 0, "a": 1, "b": 2}
    assert speech_indices(["b", "?", "a"], vocabulary) == [2, 0, 1]


@pytest.mark.parametrize("content", [b" \na\n", b" \na\nb\nc\n", b"\xff\xfe", b""])
def test_another_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(WeightsError, match="vocab.txt"):
        read_vocabulary(tmp_path / "vocab.txt", 3)
    with pytest.raises(WeightsError, match="gone.txt"):
        read_vocabulary(tmp_path / "gone.txt", 3)
