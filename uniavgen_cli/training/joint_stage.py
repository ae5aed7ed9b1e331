"""The joint model: the audio branch alone, then every task by the odds of the task table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from uniavgen_cli.codecs import CaptionReader
from uniavgen_cli.codecs.speech_tokens import character_indices
from uniavgen_cli.data.cache import CachedClip, CachedPictures
from uniavgen_cli.data.dataset import REFERENCE_TOKENS
from uniavgen_cli.data.voice import MANNERS
from uniavgen_cli.diffusion.sampler import Given, State, noise
from uniavgen_cli.engine.tasks import TASKS, Task
from uniavgen_cli.models.speech_text import pad_tokens
from uniavgen_cli.models.state_dict import save_sharded
from uniavgen_cli.models.uniavgen import Conditions, JointOutput, Switches, UniAVGen, VideoStream
from uniavgen_cli.shapes import TEMPORAL_STRIDE, tokens_of_frames
from uniavgen_cli.training import lora
from uniavgen_cli.training.trainer import Batch, Stage, Watch

FPS, MEL_HZ = 16, 100
FACE_WEIGHT = 2.0  # of a latent cell that the face fills in a single picture, against 1 elsewhere
EXPRESSION_WEIGHT = 8.0  # and of one that brows, eyes or mouth fill: an emotion shows in four cells of 64
MOUTH_WEIGHT = 40.0  # of a latent cell that the mouth fills in a clip: it is one or two cells of 64
AUDIO_PARTS = (  # of the joint model's parameters
    "audio_",
    "head_audio.",
    "phonemes.",
    "text_embedding.",
    "text_proj.",
    "time_embedding_audio.",
    "time_projection_audio.",
)
BLOCKS = ("blocks.", "audio_blocks.", "a2v_blocks.", "v2a_blocks.")  # whose matrices Muon steers
EVEN_FROM = 0.4  # below this t all errors of a clean picture count alike
MASK_UNTIL = 0.8  # of the steps: from there on nobody says where the face is
MAX_GIVEN_LATENTS = 10  # of a continuation: 37 frames
LIPS_ALONE = 0.5  # share of the dubbed clips of which nobody tells what is said
SAID_BY_ANOTHER = 0.5  # share of the continuations with a reference voice whose given sound is another's


@dataclass(frozen=True, kw_only=True)
class JointTraining:
    """How the joint model learns; `audio_alone` is the paper's first stage."""

    steps: int
    batch_size: int = 16
    lr: float = 1e-3
    seed: int = 0
    audio_alone: bool = False
    dropped: float = 0.1  # share of clips whose caption, or whose speech text, is left out
    carried: float = 0.3  # share of the batches that go on from a window before
    mask_weight: float = 0.1  # at the first step; falls to 0 along the run
    shift: float = 3.0  # of the training timesteps, towards noise
    odds: dict[str, float] | None = None  # of the tasks by name; those of the task table when not given
    picture_share: float = 0.0  # of the steps that teach the video branch alone, from single pictures
    picture_batch: int = 96
    hold_audio: bool = False  # the audio branch's own weights stay; what passes between the branches learns
    bf16: bool = True
    untold: float = 0.5  # share of given voices whose words are not told
    manner_told: float = 0.0  # share of the clips whose phonemes tell the emotion; else the face does
    muon: bool = False  # steers the blocks' matrices in AdamW's place: dearer steps, and fewer of them
    lora_rank: int = 0  # of adapters, which learn instead of the model's own weights; 0: without
    lora_alpha: float = 16.0  # their sum counts alpha / rank times
    checkpoint_every_s: float = 180.0


@dataclass(frozen=True)
class Clips:
    """Clips of one length and size: stacked tensors, and a text of each clip for each kind of text."""

    tensors: dict[str, Tensor]
    texts: dict[str, list[str]]

    def pick(self, chosen: np.ndarray) -> "Clips":
        rows = torch.from_numpy(chosen)
        return Clips(
            {name: values[rows] for name, values in self.tensors.items()},
            {name: [values[i] for i in chosen] for name, values in self.texts.items()},
        )


class ClipBank:
    """Cached clips in memory, grouped by length and size, and by whether they have a reference voice.

    Without `captions` the clips are for the audio branch, which reads none.
    """

    def __init__(self, clips: Iterable[CachedClip], captions: CaptionReader | None) -> None:
        groups: dict[tuple[int, ...], list[CachedClip]] = {}
        for clip in clips:
            groups.setdefault(_shape_of(clip), []).append(clip)
        self.groups = [_stacked(members, captions) for members in groups.values()]
        self.sizes = [len(group.tensors["mel"]) for group in self.groups]
        self.odds = np.array(self.sizes) / sum(self.sizes)

    def draw(self, rng: np.random.Generator, count: int) -> Clips:
        """`count` clips of one random group."""
        number = int(rng.choice(len(self.groups), p=self.odds))
        size = self.sizes[number]
        return self.groups[number].pick(rng.choice(size, count, replace=size < count))


class PictureBank:
    """Cached pictures in memory, their captions encoded: many more people than the clips have."""

    def __init__(self, pictures: CachedPictures, captions: CaptionReader) -> None:
        self.latents = pictures.latents
        self.weights = 1 + FACE_WEIGHT * pictures.faces + EXPRESSION_WEIGHT * pictures.expressions
        self.captions = encoded(pictures.captions, captions)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (count, c, 1, h, w), captions (count, tokens, dim) and weights (count, h, w), float32."""
        rows = torch.from_numpy(rng.choice(len(self.latents), count))
        latents = self.latents[rows].float().unsqueeze(2)
        return latents, self.captions[rows].float(), self.weights[rows].float()


def joint_stage(
    model: UniAVGen,
    bank: ClipBank | None,
    how: JointTraining,
    *,
    pictures: PictureBank | None = None,
    importance: Tensor | None = None,
    indices: Callable[[str], list[int]] = character_indices,
    watches: tuple[Watch, ...] = (),
) -> Stage:
    """The stage that trains `model`: its audio alone, the five tasks together, or pictures.

    `bank` is needed unless all is pictures, `pictures` for any share of them; `importance` (c,) weighs the
    video's latent channels; `indices` counts the speech text. With a `lora_rank` adapters learn
    instead of the model's weights. Raises ValueError when what is needed is missing.
    """
    if bank is None and how.picture_share < 1:
        raise ValueError(f"a picture share of {how.picture_share:g} needs clips")
    if pictures is None and how.picture_share > 0:
        raise ValueError(f"a picture share of {how.picture_share:g} needs pictures")
    given = how.odds or {name: row.odds for name, row in TASKS.items()}
    if unknown := sorted(set(given) - set(TASKS)):
        raise ValueError(f"odds of {', '.join(unknown)}: the tasks are {', '.join(TASKS)}")
    if how.manner_told and not model.config.manners:
        raise ValueError(f"manner_told {how.manner_told:g} needs a model that knows manners of speaking")
    if how.lora_rank:
        lora.add_adapters(model, how.lora_rank, how.lora_alpha)
    if how.hold_audio:
        for name, parameter in model.named_parameters():
            if name.startswith(AUDIO_PARTS):
                parameter.requires_grad_(False)
    odds = np.array(list(given.values()), float)
    tasks = list(given)

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([how.seed, step])
        if pictures is not None and rng.random() < how.picture_share:
            return _single_pictures(pictures, how, rng)
        assert bank is not None
        task = tasks[int(rng.choice(len(tasks), p=odds / odds.sum()))]
        if how.audio_alone:
            task = "generate"  # the one that hears nothing and says everything
        clips = bank.draw(rng, how.batch_size)
        if not clips.tensors["reference_mel"].shape[1]:
            task = task.removesuffix("-voice")
        row = TASKS[task]
        made = _sound_batch(clips, row, how, rng, indices, model.config.phoneme_vocab)
        made["task"] = task
        made["noise_seed"] = how.seed * 1_000_003 + step
        made["t"] = _times(rng, how.batch_size, how.shift)
        if how.audio_alone and rng.random() < how.carried:
            made["given_audio"] = int(rng.integers(1, made["mel"].shape[1] // 2 + 1))
        if not how.audio_alone:
            made |= _picture_batch(clips, row, how, rng, made)
        return made | _said_by_another(made, rng)

    return Stage(
        name="audio" if how.audio_alone else "joint",
        module=model,
        batch=batch,
        loss=_audio_loss if how.audio_alone else _joint_loss(how, importance),
        export=partial(lora.export, alpha=how.lora_alpha) if how.lora_rank else export,
        steps=how.steps,
        lr=how.lr,
        muon=BLOCKS if how.muon and not how.lora_rank else (),
        dtype=torch.bfloat16 if how.bf16 else torch.float32,
        checkpoint_every_s=how.checkpoint_every_s,
        trained_only=how.lora_rank > 0,
        watches=watches,
    )


def export(weights: dict[str, Tensor], folder: Path) -> None:
    """Save the averaged weights as the product reads them: shards and their index, in bfloat16."""
    save_sharded(weights, folder)


def _times(rng: np.random.Generator, count: int, shift: float) -> Tensor:
    u = torch.from_numpy(rng.random(count)).float()
    return shift * u / (1 + (shift - 1) * u)


def _single_pictures(pictures: PictureBank, how: JointTraining, rng: np.random.Generator) -> Batch:
    latents, caption, weight = pictures.draw(rng, how.picture_batch)
    dropped = torch.from_numpy(rng.random(len(latents)) < how.dropped)
    return {
        "task": "picture",
        "picture": latents,
        "weight": weight,
        "caption": caption.masked_fill(dropped[:, None, None], 0.0),
        "t": _times(rng, len(latents), how.shift),
        "noise_seed": int(rng.integers(1 << 62)),
    }


def _sound_batch(
    clips: Clips,
    row: Task,
    how: JointTraining,
    rng: np.random.Generator,
    indices: Callable[[str], list[int]],
    phoneme_vocab: int,
) -> Batch:
    mel, phonemes = clips.tensors["mel"].float(), clips.tensors["phonemes"].long()
    size = len(mel)
    texts = clips.texts["text"]
    silent = rng.random(size) < how.dropped
    if row.given_audio == "all":
        silent[:] = True  # the given sound says it
    elif row.given_video == "all":
        silent |= rng.random(size) < LIPS_ALONE
        phonemes = torch.stack([_jittered(line, rng) for line in phonemes])  # timing must come from the lips
    mute = torch.from_numpy(silent)
    if how.manner_told:
        emotions = clips.texts["emotion"]  # of one's own clips in one's own words
        manners = torch.tensor([MANNERS.index(e) if e in MANNERS else 0 for e in emotions])
        told = torch.from_numpy(rng.random(size) < how.manner_told)
        phonemes = phonemes + phoneme_vocab * (manners * told)[:, None]
    phonemes = phonemes.masked_fill(mute[:, None], 0)
    reference = None
    # every command may be given a voice, so audio alone and dubbing learn it as well
    listens = (
        row.reference_voice
        or (how.audio_alone and rng.random() < 0.25)
        or (row.given_video == "all" and rng.random() < 0.5)
        or (row.given_audio == "part" and rng.random() < 0.5)  # a long clip's first window tells the voice
    )
    if listens and clips.tensors["reference_mel"].shape[1]:
        length = int(rng.integers(80, 1 + clips.tensors["reference_mel"].shape[1]))
        reference = clips.tensors["reference_mel"][:, :length].float()
        spoken = clips.tensors["reference_phonemes"][:, :length].long()
        untold = torch.from_numpy(rng.random(size) < how.untold)
        phonemes = torch.cat([spoken.masked_fill(untold[:, None], 0), phonemes], dim=1)
        texts = [
            text if skip else f"{before} {text}"
            for text, before, skip in zip(texts, clips.texts["reference_text"], untold.tolist(), strict=True)
        ]
    speech, lengths = pad_tokens(
        [[] if skip else indices(text) for text, skip in zip(texts, silent, strict=True)]
    )
    caption = clips.tensors["caption"].float()
    return {
        "mel": mel,
        "reference_mel": reference,
        "phonemes": phonemes,
        "speech": speech,
        "speech_lengths": lengths,
        "caption": caption.masked_fill(torch.from_numpy(rng.random(size) < how.dropped)[:, None, None], 0.0),
        "given_audio": 0,
    }


def _picture_batch(
    clips: Clips, row: Task, how: JointTraining, rng: np.random.Generator, made: Batch
) -> Batch:
    latents = clips.tensors["latents"].float().transpose(1, 2)  # (b, c, F, h, w)
    num_latents, num_tokens = latents.shape[2], made["mel"].shape[1]
    given_video = {"first": 1, "all": num_latents, "part": 0}[row.given_video]
    given_audio = num_tokens if row.given_audio == "all" else 0
    # a long clip's later windows go on from what was made, and their reference is the clip's first frame
    carried = row is not TASKS["generate"] and rng.random() < how.carried
    if row.given_video == "part" or carried:
        kept = int(rng.integers(1, min(MAX_GIVEN_LATENTS, num_latents - 2) + 1))
        given_video = max(given_video, kept)
        given_audio = max(given_audio, tokens_of_frames(TEMPORAL_STRIDE * (kept - 1) + 1, FPS, MEL_HZ))
    reference = int(rng.integers(num_latents)) if carried else 0
    return {
        "latents": latents,
        "reference_frame": latents[:, :, reference : reference + 1],
        "given_video": given_video,
        "given_audio": given_audio,
        "face_mask": clips.tensors["face_mask"].float().flatten(2),  # (b, F, n)
        "mouth_mask": clips.tensors["mouth_mask"].float(),  # (b, F, h, w)
        "a2v": row.a2v,
        "v2a": row.v2a,
    }


def _said_by_another(made: Batch, rng: np.random.Generator) -> Batch:
    """Of some continuations the given sound in the voice of the batch's next clip, and the phonemes with it.

    Else a long clip's windows follow what was said last, each a little off, and the voice wanders:
    where there is a reference voice, that one has to be followed.
    """
    given, mel, phonemes = made["given_audio"], made["mel"], made["phonemes"]
    if made["reference_mel"] is None or not 0 < given < mel.shape[1] or rng.random() >= SAID_BY_ANOTHER:
        return {}
    start = phonemes.shape[1] - mel.shape[1]
    told = phonemes.clone()
    told[:, start : start + given] = phonemes.roll(1, 0)[:, start : start + given]
    return {"mel": torch.cat((mel.roll(1, 0)[:, :given], mel[:, given:]), dim=1), "phonemes": told}


def joint_forward(module: nn.Module, batch: Batch) -> tuple[JointOutput, State]:
    """What the model makes of a batch of clips, and the noise that was put on them."""
    latents, mel, t = batch["latents"], batch["mel"], batch["t"]
    given_video, given_audio = batch["given_video"], batch["given_audio"]
    noises = noise(latents.shape, mel.shape, batch["noise_seed"])
    state = _noisy(latents, mel, t, noises)
    given = Given(
        reference_frame=batch["reference_frame"],
        video=latents[:, :, :given_video] if given_video else None,
        reference_audio=batch["reference_mel"],
        audio=mel[:, :given_audio] if given_audio else None,
    )
    made = module(
        given.video_stream(state, 1000 * t),
        given.audio_stream(state, 1000 * t),
        _conditions(batch),
        Switches(a2v=(batch["a2v"],) * len(t), v2a=(batch["v2a"],) * len(t)),
    )
    return made, noises


def _joint_loss(
    how: JointTraining, importance: Tensor | None
) -> Callable[[nn.Module, Batch, int], dict[str, Tensor]]:
    def video_error(velocity: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """(b, f, h, w), of latents (b, c, f, h, w) at t (b,)."""
        # a clean picture's error counts 1 / t^2 times as one of velocity: all the loss would be of small t
        share = (t / t.clamp(min=EVEN_FROM)).view(-1, 1, 1, 1, 1)
        error = (share * (velocity.float() - target)).square()
        if importance is not None:
            error = error * importance.to(error).view(-1, 1, 1, 1)
        return error.mean(1)

    def loss(module: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        if "picture" in batch:
            return {"picture": picture_loss(module, batch)}
        latents, mel, t = batch["latents"], batch["mel"], batch["t"]
        given_video, given_audio = batch["given_video"], batch["given_audio"]
        made, noises = joint_forward(module, batch)
        losses = {}
        if given_video < latents.shape[2]:
            velocity = made.video[:, :, -latents.shape[2] :]
            error = video_error(velocity, noises.video.to(latents) - latents, t)[:, given_video:]
            weight = 1 + MOUTH_WEIGHT * batch["mouth_mask"][:, given_video:]
            losses["video"] = _weighed(error, weight)
        if given_audio < mel.shape[1]:
            losses["audio"] = _audio_error(made.audio, noises.audio.to(mel) - mel, given_audio)
        mask_weight = how.mask_weight * max(0.0, 1 - step / (MASK_UNTIL * how.steps))
        if mask_weight > 0:
            masks = made.face_mask_logits.float().sigmoid()  # (b, layers, F, n)
            error = (masks - batch["face_mask"][:, None]).square()
            losses["mask"] = mask_weight * error.flatten(1).mean(1)
        return losses

    def picture_loss(module: nn.Module, batch: Batch) -> Tensor:
        latents, t = batch["picture"], batch["t"]
        pure = noise(latents.shape, (0,), batch["noise_seed"]).video.to(latents)
        stream = VideoStream(latents=_mixed(latents, pure, t), timesteps=1000 * t[:, None])
        assert isinstance(module, UniAVGen)
        velocity = module.forward_video(stream, batch["caption"])
        error = video_error(velocity, pure - latents, t)
        return _weighed(error, batch["weight"][:, None])

    return loss


def _weighed(error: Tensor, weight: Tensor) -> Tensor:
    """The mean (b,) of errors (b, ...) that count by their weights, of the same shape."""
    return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def _audio_loss(module: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
    mel, t = batch["mel"], batch["t"]
    noises = noise((len(mel), 0), mel.shape, batch["noise_seed"])
    state = _noisy(noises.video.to(mel), mel, t, noises)
    given_audio = batch["given_audio"]
    given = Given(reference_audio=batch["reference_mel"], audio=mel[:, :given_audio] if given_audio else None)
    stream = given.audio_stream(state, 1000 * t)
    assert isinstance(module, UniAVGen)
    made = module.forward_audio(stream, _conditions(batch))
    return {"audio": _audio_error(made, noises.audio.to(mel) - mel, given_audio)}


def _noisy(latents: Tensor, mel: Tensor, t: Tensor, noises: State) -> State:
    return State(_mixed(latents, noises.video, t), _mixed(mel, noises.audio, t))


def _mixed(data: Tensor, pure: Tensor, t: Tensor) -> Tensor:
    return torch.lerp(data, pure.to(data), t.view(-1, *(1,) * (data.ndim - 1)))


def _audio_error(made: Tensor, target: Tensor, given: int) -> Tensor:
    error = made[:, -target.shape[1] :].float() - target
    return error[:, given:].square().flatten(1).mean(1)


def _conditions(batch: Batch) -> Conditions:
    return Conditions(
        caption=batch["caption"],
        speech=batch["speech"],
        speech_lengths=batch["speech_lengths"],
        phonemes=batch["phonemes"],
        face_prior=None,
    )


def _jittered(phonemes: Tensor, rng: np.random.Generator) -> Tensor:
    """The phonemes (A,) at stretched and wobbling times: up to 12 % and 0.08 s from where they are said."""
    length = len(phonemes)
    times = np.arange(length)
    centre = rng.uniform(0, length)
    knots = rng.normal(0, 4, size=length // 25 + 2)
    wobble = np.interp(times, np.linspace(0, length - 1, len(knots)), knots)
    source = centre + (times - centre) * rng.uniform(0.88, 1.12) + wobble
    return phonemes[torch.from_numpy(np.clip(np.rint(source), 0, length - 1).astype(np.int64))]


def _shape_of(clip: CachedClip) -> tuple[int, ...]:
    latents = clip.tensors.get("latents")
    has_voice = len(clip.tensors["reference_mel"]) > 0
    return (len(clip.tensors["mel"]), has_voice, *(() if latents is None else latents.shape))


def _stacked(members: list[CachedClip], captions: CaptionReader | None) -> Clips:
    tensors = {}
    for name in members[0].tensors:
        values = [member.tensors[name] for member in members]
        tensors[name] = torch.stack(
            [_extended(x) for x in values] if name.startswith("reference") else values
        )
    texts = {name: [member.texts[name] for member in members] for name in members[0].texts}
    tensors["caption"] = torch.zeros(len(members), 1, 1)
    if captions is not None:
        tensors["caption"] = encoded(texts["caption"], captions)
    return Clips(tensors, texts)


def encoded(words: list[str], captions: CaptionReader) -> Tensor:
    """Caption states (n, tokens, dim) in float16."""
    distinct = list(dict.fromkeys(words))
    with torch.inference_mode():
        states = [captions.encode(distinct[i : i + 64]) for i in range(0, len(distinct), 64)]
    rows = {text: row for row, text in enumerate(distinct)}
    return torch.cat(states).half().cpu()[[rows[text] for text in words]].clone()


def _extended(value: Tensor) -> Tensor:
    """A reference voice as long as every other: said again from its start; none stays none."""
    if not len(value):
        return value
    repeats = -(-REFERENCE_TOKENS // len(value))
    return value.repeat(repeats, *(1,) * (value.ndim - 1))[:REFERENCE_TOKENS]
