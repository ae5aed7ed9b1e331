"""Training clips and pictures as the model sees them: mels and phonemes, latents and masks, in shards."""

import json
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from uniavgen_cli.codecs import PictureCodec
from uniavgen_cli.codecs.mel import log_mel, normalize, peak_normalize
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
from uniavgen_cli.data.avatar import Rendered
from uniavgen_cli.data.dataset import REFERENCE_TOKENS, SpeakingClip, as_seen, sample_clip, sample_picture
from uniavgen_cli.data.photograph import photographed
from uniavgen_cli.data.voice import place_phonemes
from uniavgen_cli.errors import InputError
from uniavgen_cli.media.face import EYES, FACE, MOUTH, Box, face_mask, part_of
from uniavgen_cli.shapes import PATCH, TEMPORAL_STRIDE, ClipSpec

SHARD = 64  # clips a file
PICTURE_SHARD = 512  # pictures a file
SILENT_SAMPLES = 7200  # 0.3 s
PHOTOGRAPHS = 2  # a stream of random numbers of its own beside the clips' and the pictures'


@dataclass(frozen=True, kw_only=True)
class VAESource:
    """Where a worker finds the video VAE: its weights file and its preset section."""

    path: Path
    config: dict[str, object]
    digest: str  # of the file, which tells it from another


def build(
    out: Path,
    *,
    seed: int,
    first: int,
    count: int,
    vae: VAESource | None = None,
    liveliness: float = 1.0,
    photographic: float = 0.0,
    workers: int = 1,
) -> Iterator[int]:
    """Draw and speak clips `first` to `first + count` of the data set `seed`; yields the clips done so far.

    Without `vae` only the sound is kept, in `audio-*.safetensors`; with it only the picture, in
    `video-*.safetensors`, of heads as close-ups show them, which move `liveliness` times as much as people's;
    a share `photographic` of them is made more like photographs.
    Shards that are there already are left alone, so a run that was cut goes on. Raises InputError for ones
    that were made otherwise.
    """
    kind = "audio" if vae is None else "video"
    how = f"seed {seed}"
    if vae is not None:
        how += f", liveliness {liveliness:g}, as seen, like photographs {photographic:g}, VAE {vae.digest}"
    starts = _missing(out, kind, range(first, first + count, SHARD), how)
    done = count - len(starts) * SHARD
    yield from _written(
        out,
        workers,
        done,
        [(_write_shard, out, seed, start, vae, liveliness, photographic, how) for start in starts],
    )


def build_pictures(
    out: Path, *, seed: int, count: int, vae: VAESource, variety: float = 1.0, workers: int = 1
) -> Iterator[int]:
    """Draw pictures 0 to `count` of the data set `seed`, in `picture-*.safetensors`, in the same manner.

    Their people differ `variety` times as much in what no caption names.
    """
    how = f"seed {seed}, variety {variety:g}, with expressions, VAE {vae.digest}"
    starts = _missing(out, "picture", range(0, count, PICTURE_SHARD), how)
    done = count - len(starts) * PICTURE_SHARD
    yield from _written(
        out, workers, done, [(_write_pictures, out, seed, start, vae, variety, how) for start in starts]
    )


def _missing(out: Path, kind: str, starts: Iterable[int], how: str) -> list[int]:
    """The shards that are not there yet; those that are must have been made as these would be."""
    missing = []
    for start in starts:
        path = _shard(out, kind, start)
        if not path.is_file():
            missing.append(start)
            continue
        with safe_open(path, framework="pt") as file:
            made = (file.metadata() or {}).get("how", "not told how")
        if made != how:
            raise InputError(
                f"{path} was made otherwise: {made}; now asked for: {how}",
                "give train.data a new folder, or remove this one",
            )
    return missing


def _written(out: Path, workers: int, done: int, calls: list[tuple[Any, ...]]) -> Iterator[int]:
    """Make the calls, which write into `out` and return how much, in processes; yields the sum."""
    out.mkdir(parents=True, exist_ok=True)
    # spawned: espeak-ng and torch threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job in as_completed([pool.submit(*call) for call in calls]):
            done += job.result()
            yield done


@dataclass(frozen=True)
class CachedClip:
    """One clip: `tensors` are what `sound_arrays` and `picture_arrays` give, `texts` its words.

    The texts are `text`, `reference_text`, `caption` and `emotion`.
    """

    tensors: dict[str, torch.Tensor]
    texts: dict[str, str]


def load(out: Path, *, pictures: bool) -> list[CachedClip]:
    """Every cached clip of a folder in index order, with its pictures or those clips' sound alone."""
    clips = []
    kind = "video" if pictures else "audio"
    for path in sorted(out.glob(f"{kind}-*.safetensors")):
        sounds = _read(_shard(out, "audio", int(path.stem.split("-")[1])))
        seen = _read(path) if pictures else {}
        for index, sound in sounds.items():
            drawn = seen[index].tensors if pictures else {}
            clips.append(CachedClip({**sound.tensors, **drawn}, sound.texts))
    return clips


@dataclass(frozen=True)
class CachedPictures:
    """Single pictures: normalised latents (n, c, h, w) and captions; float16.

    Each cell's shares (n, h, w) of the face, and of what shows its expression.
    """

    latents: torch.Tensor
    captions: list[str]
    faces: torch.Tensor
    expressions: torch.Tensor


def load_pictures(out: Path) -> CachedPictures:
    """Every cached picture of a folder in index order."""
    latents, captions, faces, expressions = [], [], [], []
    for path in sorted(out.glob("picture-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            latents.append(file.get_tensor("latents"))
            faces.append(file.get_tensor("faces"))
            expressions.append(file.get_tensor("expressions"))
            captions += json.loads(file.metadata()["captions"])
    return CachedPictures(torch.cat(latents), captions, torch.cat(faces), torch.cat(expressions))


def first_pictures(clips: Iterable[CachedClip]) -> CachedPictures:
    """What clips begin with; of several sizes those of the commonest."""
    of_size: dict[torch.Size, list[CachedClip]] = {}
    for clip in clips:
        of_size.setdefault(clip.tensors["latents"].shape[1:], []).append(clip)
    alike = max(of_size.values(), key=len)
    faces = torch.stack([clip.tensors["face_mask"][0] for clip in alike])  # of tokens
    return CachedPictures(
        torch.stack([clip.tensors["latents"][0] for clip in alike]),
        [clip.texts["caption"] for clip in alike],
        faces.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2),
        torch.stack([clip.tensors["mouth_mask"][0] for clip in alike]),
    )


def _shard(out: Path, kind: str, start: int) -> Path:
    return out / f"{kind}-{start:06d}.safetensors"


def _write_shard(
    out: Path,
    seed: int,
    start: int,
    vae: VAESource | None,
    liveliness: float,
    photographic: float,
    how: str,
) -> int:
    torch.set_num_threads(1)
    codec = None if vae is None else VideoVAE.load(vae.path, VideoVAEConfig(**vae.config))  # type: ignore[arg-type]
    tensors: dict[str, torch.Tensor] = {}
    texts: dict[str, dict[str, str]] = {}
    for index in range(start, start + SHARD):
        clip = sample_clip(seed, index)
        if codec is None:
            arrays = sound_arrays(clip)
            texts[str(index)] = texts_of(clip)
        else:
            clip = replace(clip, identity=as_seen(clip.identity), motion=clip.motion.calmer(liveliness))
            rng = np.random.default_rng([seed, index, PHOTOGRAPHS])
            drawn = clip.draw()
            if rng.random() < photographic:
                drawn = photographed(drawn, rng)
            arrays = picture_arrays(clip, codec, drawn)
        tensors.update({f"{index}/{name}": value.contiguous() for name, value in arrays.items()})
    path = _shard(out, "audio" if codec is None else "video", start)
    beside = path.with_suffix(".tmp")
    save_file(tensors, beside, metadata={"texts": json.dumps(texts), "how": how})
    beside.replace(path)
    return SHARD


def _write_pictures(out: Path, seed: int, start: int, vae: VAESource, variety: float, how: str) -> int:
    torch.set_num_threads(1)
    codec = VideoVAE.load(vae.path, VideoVAEConfig(**vae.config))  # type: ignore[arg-type]
    pictures = [sample_picture(seed, index, variety=variety) for index in range(start, start + PICTURE_SHARD)]
    with torch.inference_mode():
        latents = torch.stack([codec.encode(frames_of(one.pixels[None]))[0, :, 0].half() for one in pictures])

    def covered(*parts: Box) -> torch.Tensor:
        """The shares (n, h, w) of the cells that these parts of the faces fill."""
        boxes = [[part_of(one.face_box, part) for part in parts] for one in pictures]
        height, width, _ = pictures[0].pixels.shape
        masks = [[face_mask(box, height, width, *latents.shape[-2:]) for box in each] for each in boxes]
        return torch.from_numpy(np.max(masks, axis=1)).half()

    path = _shard(out, "picture", start)
    beside = path.with_suffix(".tmp")
    captions = json.dumps([one.caption for one in pictures])
    tensors = {
        "latents": latents,
        "faces": covered(FACE),
        "expressions": covered(EYES, MOUTH),
    }
    save_file(tensors, beside, metadata={"captions": captions, "how": how})
    beside.replace(path)
    return PICTURE_SHARD


def frames_of(pictures: np.ndarray) -> torch.Tensor:
    """Frames (1, 3, f, h, w) in [-1, 1] of pictures (f, h, w, 3) uint8."""
    return torch.from_numpy(pictures).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def _read(path: Path) -> dict[str, CachedClip]:
    """The clips of one shard by their index; those of a picture shard have no texts."""
    with safe_open(path, framework="pt") as file:
        texts = json.loads(file.metadata()["texts"])
        clips: dict[str, CachedClip] = {}
        for key in sorted(file.keys(), key=lambda key: int(key.split("/")[0])):
            index, name = key.split("/")
            clip = clips.setdefault(index, CachedClip({}, texts.get(index, {})))
            clip.tensors[name] = file.get_tensor(key)
    return clips


def texts_of(clip: SpeakingClip) -> dict[str, str]:
    """The clip's words, as `CachedClip.texts` has them."""
    return {
        "text": clip.text,
        "reference_text": clip.reference_text,
        "caption": clip.caption.text,
        "emotion": clip.emotion,
    }


def sound_arrays(clip: SpeakingClip) -> dict[str, torch.Tensor]:
    """Normalised mels in float16 and phoneme ids in uint8, of the clip and of its reference voice."""
    # the silence that a reference voice ends in keeps it apart from what follows
    reference = mel_of(np.pad(clip.reference.samples, (0, SILENT_SAMPLES)))
    placed = place_phonemes(clip.reference.phonemes, len(reference))
    mel = mel_of(clip.samples)
    return {
        "mel": mel.half(),
        "phonemes": torch.from_numpy(clip.placed_phonemes()).to(torch.uint8),
        "reference_mel": reference[:REFERENCE_TOKENS].half(),
        "reference_phonemes": torch.from_numpy(placed)[:REFERENCE_TOKENS].to(torch.uint8),
    }


def mel_of(samples: np.ndarray) -> torch.Tensor:
    """Normalised log-mel (t, 80) of mono 24 kHz samples (n,), brought to the usual peak first."""
    return normalize(log_mel(peak_normalize(torch.from_numpy(samples))[None]))[0]


@torch.inference_mode()
def picture_arrays(
    clip: SpeakingClip, codec: PictureCodec, drawn: Rendered | None = None
) -> dict[str, torch.Tensor]:
    """Latents in float16, face coverage of each token and mouth coverage of each latent cell.

    They are of the clip as it is drawn, or of `drawn` in its place.
    """
    drawn = drawn or clip.draw()
    latents = codec.encode(frames_of(drawn.frames))[0].transpose(0, 1)
    spec = clip.spec
    return {
        "latents": latents.half(),
        "face_mask": box_masks(drawn.face_boxes, spec, spec.token_rows, spec.token_columns),
        "mouth_mask": box_masks(drawn.mouth_boxes, spec, spec.latent_height, spec.latent_width),
        "opening": torch.from_numpy(np.asarray(drawn.opening, np.float32)),
    }


def box_masks(boxes: np.ndarray, spec: ClipSpec, rows: int, columns: int) -> torch.Tensor:
    """Coverage (F, rows, columns) of each cell by boxes (num_frames, 4), meaned over a latent frame."""
    covered = np.stack([face_mask(tuple(box), spec.height, spec.width, rows, columns) for box in boxes])
    groups = [covered[:1]] + np.split(covered[1:], (spec.num_frames - 1) // TEMPORAL_STRIDE)
    return torch.from_numpy(np.stack([group.mean(0) for group in groups]).astype(np.float16))
