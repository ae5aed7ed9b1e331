"""The suite's part with photographs, which nano was never taught: shown and measured, held to no bar."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import soundfile

from uniavgen_cli.errors import InputError
from uniavgen_cli.evaluation.cases import Case
from uniavgen_cli.evaluation.figures import Row
from uniavgen_cli.evaluation.mouth import mouth_contrast
from uniavgen_cli.evaluation.parts import Bench, keep, rounded, take
from uniavgen_cli.evaluation.pictures import psnr, ssim
from uniavgen_cli.evaluation.synchrony import correlation, sound_envelope
from uniavgen_cli.media.image import is_image, read_image


def photographs(folder: Path) -> list[Path]:
    """The pictures of a folder, by name. Raises InputError when there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", "--photos takes a folder of photographs")
    found = sorted(path for path in folder.iterdir() if path.is_file() and is_image(path))
    if not found:
        raise InputError(f"the folder {folder} holds no picture", "--photos takes a folder of photographs")
    return found


def measure_photo(bench: Bench, case: Case, photo: Path, sheet: Path | None) -> Row:
    """A photograph animated by the case's sound: does it stay that photograph, and does the mouth move."""
    clip, rate = case.clip, case.clip.spec.sample_rate
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "sound.wav")
        soundfile.write(sound, clip.samples, rate, subtype="FLOAT")
        made = take(lambda: bench.engine.animate(photo, sound, seed=case.index))
    picture = cv2.resize(read_image(photo), made.frames.shape[2:0:-1], interpolation=cv2.INTER_AREA)
    still = np.repeat(picture[None], len(made.frames), axis=0)
    keep(made, sheet, still)
    row: Row = {
        "photo": photo.name,
        "first_psnr": psnr(made.frames[0], picture),
        "kept_psnr": psnr(made.frames, still),
        "kept_ssim": float(np.mean([ssim(frame, picture) for frame in made.frames])),
    }
    moves = mouth_contrast(made.frames)
    if moves is not None:
        wanted = sound_envelope(clip.samples, rate, len(made.frames), made.fps)
        other = sound_envelope(case.unbroken_other[0], rate, len(made.frames), made.fps)
        row["mouth"], row["mouth_other"] = correlation(moves, wanted), correlation(moves, other)
        row["curves"] = rounded(contrast_of_the_mouth=moves, loudness=wanted)
    return row
