"""The weights that come with the package: whole, small enough, and able to make a clip."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from uniavgen_cli.config import load_preset, weights_folder
from uniavgen_cli.data.dataset import sample_clip
from uniavgen_cli.engine.engine import Engine

FOLDER = weights_folder(load_preset("nano"))


def test_weights_are_small_and_come_with_a_card() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(sizes.values()) <= 36 * 2**20 and max(sizes.values()) <= 16 * 2**20
    card = (FOLDER / "README.md").read_text()
    for part in ("joint", "video_vae", "vocoder", "caption", "face_detector"):
        assert part in card


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_preset("nano", ["sampling.steps=6"])


def test_a_sentence_becomes_a_voice_and_a_person(engine: Engine, tmp_path: Path) -> None:
    clip = engine.generate('A woman with red hair says "Good morning."', seed=1)
    hops = clip.samples[: 240 * (len(clip.samples) // 240)].reshape(-1, 240)
    loudness = np.sqrt(np.square(hops).mean(1))  # 100 a second
    spoken = slice(*(round(100 * t) for t in (clip.plan.phonemes[0].start_s, clip.plan.phonemes[-1].end_s)))
    # sound where something is said, quiet before it
    assert loudness[spoken].mean() > 4 * loudness[: spoken.start - 2].mean()
    assert clip.frames.std() > 20
    assert clip.save(tmp_path / "a.mp4").stat().st_size > 5000


def test_the_given_picture_is_the_first_frame(engine: Engine, tmp_path: Path) -> None:
    face = sample_clip(77, 0, lengths=(33,), sizes=((128, 128),)).draw().frames[0]
    cv2.imwrite(str(tmp_path / "face.png"), face[:, :, ::-1])
    clip = engine.generate("", speech="Hello.", face=tmp_path / "face.png", seed=1)
    error = np.square(clip.frames[0].astype(float) - face).mean()
    assert error < 255**2 / 10**2.2  # 22 dB
