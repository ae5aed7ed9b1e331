"""The released inference model's own numbers, stored; UNIAVGEN_PARITY names another folder of them."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from uniavgen_cli.codecs.mel import log_mel
from uniavgen_cli.codecs.speech_tokens import language_of, read_vocabulary, speech_indices, speech_tokens
from uniavgen_cli.config import weights_dir
from uniavgen_cli.diffusion.guidance import Guidance, Pass, guided
from uniavgen_cli.diffusion.sampler import Given, State, sample
from uniavgen_cli.diffusion.schedule import timesteps
from uniavgen_cli.engine.tasks import TASKS
from uniavgen_cli.models.state_dict import load_module
from uniavgen_cli.models.uniavgen import (
    AudioStream,
    Conditions,
    JointOutput,
    Switches,
    UniAVGen,
    UniAVGenConfig,
    VideoStream,
)
from uniavgen_cli.shapes import fit_size

PARITY = Path(os.environ.get("UNIAVGEN_PARITY") or Path(__file__).parent / "parity")
OFFICIAL_TASKS = (
    "generate",
    "generate-voice",
    "animate",
    "dub",
)  # by the number the released script gives them


def read_json(name: str) -> dict:
    return json.loads((PARITY / name).read_text(encoding="utf-8"))


JOINT, SAMPLER = read_json("joint_model.json"), read_json("sampler.json")


@cache
def load_model(source: str) -> UniAVGen:
    config = read_json(source)["config"]
    return load_module(lambda: UniAVGen(UniAVGenConfig(**config)), PARITY / "joint_model_weights.safetensors")


def worst(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item() if ours.numel() else 0.0


@torch.inference_mode()
def run_case(case: dict) -> JointOutput:
    tensors = load_file(PARITY / "joint_model_cases.safetensors")
    video, audio = tensors["in.video"].clone(), tensors["in.audio"][None].clone()
    num_frames, num_tokens = case["video_cond"], case["audio_cond"]
    if num_frames:
        video[:, :, :num_frames] = tensors[f"in.{case['cond_video']}"][:, :, :num_frames]
    if num_tokens:
        audio[:, :num_tokens] = tensors[f"in.{case['cond_audio']}"][:num_tokens]
    reference = tensors["in.ref_image"]
    video = torch.cat((reference, video), dim=2)
    num_heard = 0
    if case["ref_audio"]:
        num_heard = len(tensors["in.ref_audio"])
        audio = torch.cat((tensors["in.ref_audio"][None], audio), dim=1)
    times = torch.full((len(video), video.shape[2]), case["timestep"])
    times[:, : reference.shape[2] + num_frames] = 0
    speech = tensors[f"in.{case['speech']}"]
    return load_model("joint_model.json")(
        VideoStream(latents=video, timesteps=times, num_reference=reference.shape[2], num_given=num_frames),
        AudioStream(
            mels=audio,
            timesteps=torch.full(audio.shape[:2], case["audio_timestep"]),
            num_reference=num_heard,
            num_given=num_tokens,
        ),
        Conditions(
            caption=tensors["in.caption"], speech=speech, speech_lengths=(speech.shape[1],) * len(speech)
        ),
        Switches(
            a2v=(case.get("a2v", True),),
            v2a=(case.get("v2a", True),),
            skip_block=case.get("skipped_block"),
            skipped=("skipped_block" in case,),
        ),
    )


@pytest.mark.parametrize("name", JOINT["cases"])
def test_joint_model(name: str) -> None:
    out = run_case(JOINT["cases"][name])
    stored = load_file(PARITY / "joint_model_cases.safetensors")
    audio = stored[f"out.{name}.audio"]
    assert worst(out.video[0], stored[f"out.{name}.video"]) < 1e-4
    assert worst(out.audio[:, -audio.shape[1] :], audio) < 1e-4
    if name == "mask_probe":
        mask = stored[f"out.{name}.last_face_mask"]
        assert worst(out.face_mask_logits[0, -1].sigmoid(), mask.flatten(1)) < 1e-4


@pytest.mark.parametrize("name", SAMPLER["cases"])
@torch.inference_mode()
def test_sampling_run(name: str) -> None:
    case, tensors = SAMPLER["cases"][name], load_file(PARITY / "sampler_cases.safetensors")
    row = TASKS[OFFICIAL_TASKS[case["official_task"]]]
    source = "in.cond_video" if row.given_video == "all" else "in.ref_image"
    given = Given(
        reference_frame=tensors["in.ref_image"],
        video=tensors[source][:, :, : case["video_cond"]] if case["video_cond"] else None,
        reference_audio=tensors["in.ref_audio"] if row.reference_voice else None,
        audio=tensors["in.cond_audio"][None, : case["audio_cond"]] if case["audio_cond"] else None,
    )

    def read(caption: Tensor, speech: Tensor) -> Conditions:
        return Conditions(caption=caption, speech=speech, speech_lengths=(speech.shape[1],) * len(speech))

    times = timesteps(SAMPLER["steps"], SAMPLER["shift"])
    denoise = guided(
        load_model("sampler.json"),
        Guidance(
            video_scale=SAMPLER["video_guidance"],
            audio_scale=SAMPLER["audio_guidance"],
            skip_block=SAMPLER["skip_layer"],
            modality_fraction=SAMPLER["ma_cfg_fraction"],
        ),
        times,
        given,
        Pass(conditions=read(tensors["in.caption"], tensors["in.speech"]), a2v=row.a2v, v2a=row.v2a),
        Pass(
            conditions=read(tensors["in.neg_caption"], tensors["in.neg_speech"]),
            a2v=row.negative_a2v,
            v2a=row.negative_v2a,
        ),
        batched=False,
    )
    end = sample(State(tensors["in.noise_video"], tensors["in.noise_audio"]), times, denoise)
    video, audio = tensors[f"out.{name}.video"], tensors[f"out.{name}.audio"]
    free_frames, free_tokens = case["video_cond"], case["audio_cond"]
    assert worst(end.video[:, :, free_frames:], video[:, :, free_frames:]) < 5e-4
    assert worst(end.audio[:, free_tokens:], audio[:, free_tokens:]) < 5e-4


@pytest.mark.parametrize("path", sorted(PARITY.glob("schedule_*.json")), ids=lambda path: path.stem)
def test_schedule(path: Path) -> None:
    stored = read_json(path.name)
    ours = timesteps(stored["steps"], stored["shift"])
    assert ours == pytest.approx(stored["timesteps"], abs=1e-4)


def test_mel() -> None:
    stored = load_file(PARITY / "mel.safetensors")
    assert worst(log_mel(stored["waveform"]).transpose(1, 2), stored["log_mel"]) < 1e-4


@pytest.mark.parametrize("case", json.loads((PARITY / "frame_sizes.json").read_text()), ids=str)
def test_frame_size(case: dict) -> None:
    assert list(fit_size(case["height"], case["width"], min(case["resized"]))) == case["resized"]


SPEECH = read_json("speech_tokens.json")
EACH_TEXT = pytest.mark.parametrize("case", SPEECH["cases"], ids=lambda case: case["text"][:20])


def vocabulary_path() -> Path:
    """The speech vocabulary, which is not part of this project: named by UNIAVGEN_VOCAB, or pulled."""
    return Path(os.environ.get("UNIAVGEN_VOCAB") or weights_dir() / "uniavgen" / "vocab.txt")


def tokens_of(case: dict) -> list[str]:
    if case["lang"] == "zh":
        pytest.importorskip("jieba", reason="the extra `zh` is not installed")
        pytest.importorskip("pypinyin", reason="the extra `zh` is not installed")
    assert language_of(case["text"]) == case["lang"]
    return speech_tokens(case["text"], case["lang"])


@EACH_TEXT
def test_speech_tokens(case: dict) -> None:
    assert tokens_of(case) == case["tokens"]


@pytest.mark.skipif(not vocabulary_path().is_file(), reason="no speech vocabulary here (UNIAVGEN_VOCAB)")
@EACH_TEXT
def test_speech_indices(case: dict) -> None:
    vocabulary = read_vocabulary(vocabulary_path(), SPEECH["vocab_size"])
    assert speech_indices(tokens_of(case), vocabulary) == case["indices"]
