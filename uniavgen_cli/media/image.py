"""Still pictures, whatever their colours, depth, transparency and orientation."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from uniavgen_cli.errors import InputError
from uniavgen_cli.media.limits import MOST_PIXELS, limit

# Formats that Pillow decodes by itself: no page description languages, which run programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "TGA", "JPEG2000", "MPO", "ICO")
_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap width and height


def image_size(path: str | os.PathLike[str]) -> tuple[int, int, str] | None:
    """Height and width in pixels, upright, and the format's name; None when the file is no picture.

    Raises InputError when it is too large a picture.
    """
    try:
        with _opened(path) as image:
            width, height = image.size
            if _orientation(image) in _TURNED:
                width, height = height, width
            return height, width, image.format or ""
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return None


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a still picture that can be read (an animated GIF counts by its first frame)."""
    return image_size(path) is not None


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The picture as uint8 RGB (h, w, 3), upright, see-through parts on white.

    Of an animation it is the first frame. Raises InputError when missing, cut off, too large or no picture.
    """
    name = repr(os.fspath(path))
    try:
        with _opened(path) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise InputError(f"no picture {name}", "check the name") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{name} is not a picture that can be read", "give a JPEG, PNG or WebP picture"
        ) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(
            f"{name} can't be read as a picture ({error})", "it may be cut off; copy or download it again"
        ) from None


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    most = limit(MOST_PIXELS)
    pillows_own, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS if most else None
    try:
        with warnings.catch_warnings():
            # a warning at its limit, an error at twice that
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(Path(path), formats=_known_formats())
        with image:
            if most and image.width * image.height > most:
                raise Image.DecompressionBombError
            yield image
    except Image.DecompressionBombError:
        raise InputError(
            f"{os.fspath(path)!r} is too large a picture",
            f"scale it below {MOST_PIXELS // 10**6} megapixels, or say --unlimited",
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = pillows_own


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError):  # cut off before it: still a picture, though not a whole one
        return 1


def _known_formats() -> tuple[str, ...]:
    Image.init()  # names that this Pillow was built without (AVIF) must not be asked for
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bit, or wider: Pillow's own conversion clips
        values = np.asarray(image, dtype=np.float32)
        largest = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max()))
        grey = np.clip(np.rint(values / largest * 255), 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture (h, w, 3) uint8 at another size."""
    shrinks = picture.shape[0] > height
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    return cv2.resize(picture, (width, height), interpolation=interpolation)
