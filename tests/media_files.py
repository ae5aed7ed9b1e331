"""Odd and damaged files for the tests, made with the same ffmpeg that the product runs."""

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from uniavgen_cli.media.ffmpeg import find_ffmpeg


def ffmpeg(*arguments: object) -> None:
    """Run ffmpeg quietly; a failure fails the test."""
    command = [find_ffmpeg(), "-y", "-nostdin", "-loglevel", "error", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def picture_source(size: str = "160x120", rate: object = 25, seconds: float = 1.0) -> list[str]:
    """ffmpeg's moving test picture as an input."""
    return ["-f", "lavfi", "-i", f"testsrc=size={size}:rate={rate}:duration={seconds}"]


def sound_source(
    rate: int = 44_100, seconds: float = 1.0, expression: str = "sin(2*PI*440*t)/2"
) -> list[str]:
    """A formula as sound; several channels are separated by |."""
    return ["-f", "lavfi", "-i", f"aevalsrc='{expression}':s={rate}:d={seconds}"]


def make_video(
    path: Path,
    *,
    size: str = "160x120",
    rate: object = 25,
    seconds: float = 1.0,
    sound: bool = True,
    encode: tuple[object, ...] = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast"),
) -> Path:
    """A video of the moving test picture, with a tone unless `sound` is off."""
    sources = picture_source(size, rate, seconds) + (sound_source(seconds=seconds) if sound else [])
    ffmpeg(*sources, *encode, path)
    return path


def make_flat_video(path: Path, levels: list[int], rate: int) -> Path:
    """A video whose frame k is a grey of `levels[k]`, so that a read frame tells where it came from."""
    frames = np.repeat(np.array(levels, dtype=np.uint8), 64 * 64)
    command = [
        find_ffmpeg(),
        "-y",
        "-loglevel",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "gray",
        "-video_size",
        "64x64",
        "-framerate",
        str(rate),
        "-i",
        "pipe:",
        "-c:v",
        "libx264",
        "-qp",
        "0",
        "-pix_fmt",
        "yuv420p",
        str(path),
    ]
    subprocess.run(command, check=True, input=frames.tobytes())
    return path


def make_sound(
    path: Path,
    *,
    rate: int = 44_100,
    seconds: float = 1.0,
    expression: str = "sin(2*PI*440*t)/2",
    encode: tuple[object, ...] = (),
) -> Path:
    """A sound file of the kind its name's ending says."""
    ffmpeg(*sound_source(rate, seconds, expression), *encode, path)
    return path


def quadrants(height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 RGB: red, green above blue, white; tells any turn or mirror apart."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    half_height, half_width = height // 2, width // 2
    picture[:half_height, :half_width] = 255, 0, 0
    picture[:half_height, half_width:] = 0, 255, 0
    picture[half_height:, :half_width] = 0, 0, 255
    picture[half_height:, half_width:] = 255, 255, 255
    return picture


def corners(picture: np.ndarray) -> list[str]:
    """The colours near the corners, clockwise from the upper left, named by their nearest of `quadrants`."""
    names = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    height, width, _ = picture.shape
    points = [(0.2, 0.2), (0.2, 0.8), (0.8, 0.8), (0.8, 0.2)]
    return [
        min(
            names,
            key=lambda name: np.abs(picture[int(y * height), int(x * width)] - np.array(names[name])).sum(),
        )
        for y, x in points
    ]


def save_turned(path: Path, orientation: int) -> Path:
    """A JPEG of `quadrants` with an EXIF orientation."""
    image = Image.fromarray(quadrants())
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)
    return path


def best_shift(reference: np.ndarray, heard: np.ndarray) -> int:
    """By how many samples `heard` lags `reference`, from their cross-correlation."""
    size = 1 << (len(reference) + len(heard)).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.fft.rfft(reference, size).conj()
    shift = int(np.fft.irfft(spectrum, size).argmax())
    return shift - size if shift > size // 2 else shift


def noise(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """Smoothed noise (n,) float32: sound whose place in time shows to the sample, and which survives AAC."""
    white = np.random.default_rng(seed).normal(0, 0.5, round(seconds * rate))
    return np.convolve(white, np.hanning(9) / 4, mode="same").astype(np.float32)
