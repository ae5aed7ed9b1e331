"""The released layout end to end, on a tiny checkpoint: four commands run, and a wrong file is one line."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_preset

for name in ("diffusers", "transformers", "ftfy"):
    pytest.importorskip(name, reason="the extra `released` is not installed")

from released_folder import (  # noqa: E402
    NUM_RES_BLOCKS,
    VOCABULARY,
    original_umt5,
    original_vae,
    tiny_umt5,
    tiny_vae,
    write_released,
)

from uniavgen_cli.cli import main  # noqa: E402
from uniavgen_cli.config import load_preset  # noqa: E402
from uniavgen_cli.data.dataset import sample_clip  # noqa: E402
from uniavgen_cli.engine.conditions import prepare  # noqa: E402
from uniavgen_cli.engine.engine import Engine  # noqa: E402
from uniavgen_cli.engine.request import Request, check  # noqa: E402
from uniavgen_cli.errors import InputError, UsageError, WeightsError  # noqa: E402
from uniavgen_cli.media.video import write_clip  # noqa: E402
from uniavgen_cli.models.state_dict import read_shapes, read_tensors  # noqa: E402
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig  # noqa: E402

PARITY = Path(os.environ.get("UNIAVGEN_PARITY") or Path(__file__).parent / "parity")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def engine(preset: Path) -> Engine:
    return Engine.from_preset(str(preset))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """face.png, speech.wav (1.5 s) and talk.mp4 (16 frames) of one drawn, speaking person."""
    folder = tmp_path_factory.mktemp("media")
    clip = sample_clip(11, 4, lengths=(33,), sizes=((128, 128),))
    frames = clip.draw().frames
    cv2.imwrite(str(folder / "face.png"), frames[0][:, :, ::-1])
    soundfile.write(folder / "speech.wav", clip.samples[:36_000], 24_000)
    write_clip(folder / "talk.mp4", frames[:16], clip.samples[:24_000], 16, 24_000)
    return folder


@pytest.fixture
def run(
    tmp_path: Path,
    media: Path,
    preset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs one command line with the tiny checkpoint, or another preset, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("UNIAVGEN_PRESET", "UNIAVGEN_WEIGHTS", "UNIAVGEN_VOCAB", "UNIAVGEN_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def call(line: str, with_preset: Path = preset) -> tuple[int, str, str]:
        arguments = [word.replace("{m}", str(media)).replace("_", " ") for word in line.split()]
        code = main([*arguments, "--preset", str(with_preset), "--seed", "1"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def streams(path: Path) -> tuple[int, float]:
    """Frames, and seconds of sound."""
    with av.open(str(path)) as container:
        num_frames = sum(1 for _ in container.decode(video=0))
    with av.open(str(path)) as container:
        seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    return num_frames, seconds


@pytest.mark.parametrize(
    ("line", "num_frames"),
    [
        ("generate --face {m}/face.png --prompt A_man_smiling --speech Good_day.", 33),
        ("generate --face {m}/face.png --speech 今天天气很好。 --duration 1.5", 24),
        ("generate --face {m}/face.png --speech Yes. --voice {m}/speech.wav --voice-text Hello.", 33),
        ("dub {m}/talk.mp4 --speech Yes.", 16),
        ("animate {m}/face.png {m}/speech.wav", 24),
        ("continue {m}/talk.mp4 --speech Yes.", 36),
    ],
    ids=lambda value: str(value).split("_")[0][:60],
)
def test_the_four_commands(line: str, num_frames: int, run: Run, tmp_path: Path) -> None:
    code, out, err = run(f"{line} -o made.mp4 --json")
    assert code == 0, err
    frames, seconds = streams(tmp_path / "made.mp4")
    assert frames == num_frames
    assert seconds == pytest.approx(num_frames / 16, abs=0.1)
    assert json.loads(out)["clips"][0]["frames"] == num_frames


def test_the_engine_reads_captions_and_speech_as_the_checkpoint_does(engine: Engine, media: Path) -> None:
    def prepared(**fields: object):
        plan = check(Request(task="generate", face=media / "face.png", **fields), engine.preset)
        return prepare(plan, engine.video_vae, engine.captions, engine.vocabulary)

    spoken = prepared(prompt="a man", speech="Hi!", voice=media / "speech.wav", voice_text="Go.")
    assert spoken.positive.speech[0].tolist() == [VOCABULARY.index(c) for c in "Go. Hi!"] + [-1] * 3
    assert spoken.negative.speech[0].tolist() == [VOCABULARY.index(c) for c in "Go. "] + [-1] * 6
    assert spoken.positive.speech_lengths == spoken.negative.speech_lengths == (10,)
    here = spoken.positive.caption.abs().sum(-1).bool()[0]
    assert here.sum() == 3  # two words and the end, the rest zero
    assert spoken.negative.caption.abs().sum(-1).bool()[0].sum() == 1  # the empty caption's end
    assert spoken.given.num_frames == 1 and spoken.given.reference_frame is not None
    assert not spoken.positive.phonemes.any()

    chinese = prepared(speech="你好。")
    assert chinese.positive.speech[0, :5].tolist() == [
        VOCABULARY.index(token) for token in (" ", "ni2", " ", "hao3", "。")
    ]
    as_characters = prepared(speech="ni3 hao3", language="zh")
    assert as_characters.positive.speech[0, 0] == VOCABULARY.index("n")


def test_one_vocabulary_may_serve_for_another(
    run: Run, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.txt").write_text("a\nb\n")
    monkeypatch.setenv("UNIAVGEN_VOCAB", str(tmp_path / "own.txt"))
    code, _, err = run("generate --face {m}/face.png --speech Hi.")
    assert code == 5 and f"own.txt has 2 tokens and the model knows {len(VOCABULARY)}" in err


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("generate --speech Hi.", 2, "add --face FILE"),
        ("generate --face {m}/face.png --speech Hi. --voice {m}/speech.wav", 2, "add --voice-text"),
        ("dub {m}/talk.mp4 --speech Hi. --voice {m}/speech.wav", 2, "add --voice-text"),
        ("generate --face {m}/face.png --speech Hi. --language french", 2, "--language french is not known"),
        ("generate --face {m}/face.png --speech 你好 --language en", 3, "can't be said"),
        ("generate --face {m}/face.png --speech 。。。 --language zh", 3, "has no words"),
        ("dub {m}/talk.mp4 --speech " + "今天天气很好" * 2, 3, "there is room for"),
    ],
)  # fmt: skip
def test_what_this_checkpoint_can_not_do(line: str, code: int, said: str, run: Run, tmp_path: Path) -> None:
    ended, _, err = run(line)
    assert ended == code and said in err, err
    assert err.splitlines()[-1].startswith("error: ") and not list(tmp_path.iterdir())


def test_a_long_voice_is_refused_since_its_words_are_read_whole(media: Path, preset: Path) -> None:
    request = Request(
        task="dub", video=media / "talk.mp4", speech="Hi.", voice=media / "speech.wav", voice_text="Go."
    )
    loaded = load_preset(preset)
    assert check(request, loaded).voice == media / "speech.wav"
    with pytest.raises(InputError, match="listens to 1.00 s"):
        check(request, load_preset(preset, ["clip.voice_s=1"]))
    # without a voice given the video's own is not taken: its words are not known
    silent = Request(task="dub", video=media / "talk.mp4", speech="Hi.")
    assert check(silent, loaded).voice is None


def test_chinese_needs_its_packages(monkeypatch: pytest.MonkeyPatch, media: Path, preset: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"uniavgen\[zh\]"):
        check(Request(task="generate", face=media / "face.png", speech="你好"), load_preset(preset))


# Wrong files: each is one line, names the file, and costs nothing but the reading


class Code:
    """What a pickle must never be allowed to do: write a file when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("broken-in",)


def other_shard(path: Path) -> dict[str, torch.Tensor]:
    return load_file(next(shard for shard in path.parent.glob("*.safetensors") if shard != path))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path, edit: Callable[[dict], object]) -> None:
    """Write a file of tensors again, edited."""
    tensors = dict(read_tensors(path))
    edit(tensors)
    torch.save(tensors, path) if path.suffix == ".pth" else save_file(tensors, path)


def rename(old: str, new: str) -> Callable[[dict], object]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


SHARD, VAE = "diffusion_pytorch_model-00002-of-00003.safetensors", "Wan2.2_VAE.pth"
UMT5, TOKENIZER = "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json"
INDEX, VOCODER = "diffusion_pytorch_model.safetensors.index.json", "code2wav_bigvgan_model"
WRONG: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "missing shard": (SHARD, Path.unlink, (SHARD, "1 of its 3 shards missing")),
    "truncated shard": (SHARD, cut, (SHARD, "can't be read")),
    "shard elsewhere": (
        INDEX,
        lambda path: path.write_text(json.dumps({"weight_map": {"a": f"../{SHARD}"}})),
        (INDEX, "not beside it"),
    ),
    "no index": (INDEX, Path.unlink, (INDEX, "lack the joint")),
    "damaged index": (INDEX, cut, (INDEX, "can't be read")),
    "renamed key in a shard": (
        "diffusion_pytorch_model-00001-of-00003.safetensors",
        lambda path: change(path, rename(next(iter(load_file(path))), "other")),
        ("2 keys", "missing", "other unknown", "renamed"),
    ),
    "more in a shard": (
        SHARD,
        lambda path: change(path, lambda tensors: tensors.update(stranger=torch.zeros(1))),
        ("1 keys", "stranger unknown"),
    ),
    "one key in two shards": (
        SHARD,
        lambda path: change(path, lambda t: t.update(next(iter(other_shard(path).items())) for _ in "a")),
        ("as another shard does", "fetch all of them again"),
    ),
    "no numbers in a shard": (
        SHARD,
        lambda path: change(path, lambda t: t.update({k: x * torch.nan for k, x in t.items()})),
        ("gave what is no number", "weights verify"),
    ),
    "whole numbers in a shard": (
        SHARD,
        lambda path: change(path, lambda t: t.update({k: x.to(torch.int8) for k, x in list(t.items())[:1]})),
        (INDEX, "as int8, which can't be read as float32", "quantised"),
    ),
    "complex numbers in the VAE": (
        VAE,
        lambda path: change(path, lambda t: t.update({"conv1.bias": t["conv1.bias"].to(torch.complex64)})),
        (VAE, "conv1.bias as complex64"),
    ),
    "truth values in the caption encoder": (
        UMT5,
        lambda path: change(path, lambda t: t.update({"norm.weight": t["norm.weight"] > 0})),
        (UMT5, "norm.weight as bool"),
    ),
    "truncated VAE": (VAE, cut, (VAE, "can't be read")),
    "empty VAE": (VAE, lambda path: path.write_bytes(b""), (VAE, "can't be read")),
    "no VAE": (VAE, Path.unlink, (VAE, "lack the video vae")),
    "code in the VAE": (VAE, lambda path: torch.save({"conv1.weight": Code()}, path), (VAE, "code")),
    "any pickle for a VAE": (
        VAE,
        lambda path: path.write_bytes(pickle.dumps(Code())),
        (VAE, "none of it was run"),
    ),
    "words for a VAE": (VAE, lambda path: path.write_text("<html>not found</html>"), (VAE, "no tensors")),
    "nested VAE": (VAE, lambda path: torch.save({"state": {}}, path), (VAE, "flat table")),
    "renamed key in the VAE": (
        VAE,
        lambda path: change(path, rename("encoder.conv1.weight", "encoder.stem.weight")),
        (VAE, "2 keys", "encoder.conv1.weight missing", "encoder.stem.weight unknown", "renamed"),
    ),
    "missing key in the VAE": (
        VAE,
        lambda path: change(path, lambda tensors: tensors.pop("decoder.conv1.bias")),
        (VAE, "1 keys: decoder.conv1.bias missing"),
    ),
    "another shape in the VAE": (
        VAE,
        lambda path: change(path, lambda t: t.update({"decoder.head.0.gamma": torch.zeros(5, 1, 1, 1)})),
        (VAE, "decoder.head.0.gamma is (5, 1, 1, 1), not (6, 1, 1, 1)"),
    ),
    "no stem in the VAE": (
        VAE,
        lambda path: change(
            path, lambda tensors: [tensors.pop(f"encoder.conv1.{kind}") for kind in ("weight", "bias")]
        ),
        (VAE, "encoder.conv1.weight missing, encoder.conv1.bias missing"),
    ),
    "the VAE is the caption encoder": (
        VAE,
        lambda path: shutil.copy(path.parent / UMT5, path),
        (VAE, "another model's file"),
    ),
    "the caption encoder is the VAE": (
        UMT5,
        lambda path: shutil.copy(path.parent / VAE, path),
        (UMT5, "another model's file"),
    ),
    "truncated caption encoder": (UMT5, cut, (UMT5, "can't be read")),
    "code in the caption encoder": (UMT5, lambda path: torch.save({"a": Code()}, path), (UMT5, "code")),
    "renamed key in the caption encoder": (
        UMT5,
        lambda path: change(path, rename("blocks.1.attn.q.weight", "blocks.1.attn.query.weight")),
        (UMT5, "blocks.1.attn.q.weight missing", "blocks.1.attn.query.weight unknown"),
    ),
    "no table of tokens": (
        UMT5,
        lambda path: change(path, rename("token_embedding.weight", "embedding.weight")),
        (UMT5, "token_embedding.weight missing, embedding.weight unknown"),
    ),
    "no tokenizer": (TOKENIZER, Path.unlink, ("tokenizer.json", "can't be read")),
    "damaged tokenizer": (TOKENIZER, cut, ("tokenizer.json", "can't be read")),
    "no vocoder configuration": (f"{VOCODER}/config.json", Path.unlink, ("config.json", "can't be read")),
    "no vocoder weights": (f"{VOCODER}/model.safetensors", Path.unlink, (VOCODER, "no .safetensors")),
    "truncated vocoder": (f"{VOCODER}/model.safetensors", cut, ("model.safetensors", "can't be read")),
    "another vocoder": (
        f"{VOCODER}/config.json",
        lambda path: path.write_text(path.read_text().replace('"mel_dim": 80', '"mel_dim": 100')),
        (VOCODER, "100 mel bins"),
    ),
    "a vocoder of other kinds of numbers": (
        f"{VOCODER}/config.json",
        lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"upsample_rates": "abc"})),
        (VOCODER, "sizes no such vocoder can have"),
    ),
    "a vocoder that can't be built": (
        f"{VOCODER}/config.json",
        lambda path: path.write_text(
            json.dumps(json.loads(path.read_text()) | {"resblock_dilation_sizes": [[1]]})
        ),
        (VOCODER, "sizes no such vocoder can have"),
    ),
    "no vocabulary": ("vocab.txt", Path.unlink, ("vocab.txt", "lack the vocabulary")),
    "cut vocabulary": ("vocab.txt", cut, ("vocab.txt", "tokens and the model knows")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_one_line(wrong: str, run: Run, preset: Path, tmp_path: Path) -> None:
    file, spoil, said = WRONG[wrong]
    weights = tmp_path / "weights"
    shutil.copytree(preset.parent / "released", weights)
    spoil(weights / file)
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: {preset}\nabout: for tests\nweights: {weights}\n")
    code, out, err = run("generate --face {m}/face.png --speech Hi. -o made.mp4", own)
    assert code == 5, err
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    for part in said:
        assert part in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.yaml", "weights"]


def test_a_checkpoint_of_other_sizes_says_so(preset: Path) -> None:
    with pytest.raises(WeightsError, match="sizes in the preset"):
        Engine.from_preset(str(preset), ["model.video_ffn_dim=64"])
    with pytest.raises(WeightsError, match="makes states of width 32, and the model reads 64"):
        Engine.from_preset(str(preset), ["caption.dim=64"])


# The layout itself


def test_the_tiny_files_have_the_released_keys() -> None:
    """Against the stored fixtures, whose key layout is the original one."""
    stored = json.loads((PARITY / "video_vae.json").read_text())
    if stored["num_res_blocks"] == NUM_RES_BLOCKS and len(stored["dim_mult"]) == 4:
        assert set(original_vae(tiny_vae())) == set(read_shapes(PARITY / "video_vae_weights.safetensors"))
    ours = set(original_umt5(tiny_umt5()))
    stored_keys = set(read_shapes(PARITY / "caption_encoder_weights.safetensors"))
    assert {unnumbered(key) for key in ours} == {unnumbered(key) for key in stored_keys}


def unnumbered(key: str) -> str:
    return re.sub(r"blocks\.\d+\.", "blocks.N.", key)


def test_the_full_size_by_part() -> None:
    """The preset's model on the meta device: 7.1 B parameters, in the released key layout."""
    config = load_preset("uniavgen").model
    with torch.device("meta"):
        model = UniAVGen(UniAVGenConfig(**config))
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}

    def count(*prefixes: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(prefixes))

    # by hand from the sizes: attention 4 (d^2 + d) + 2 d, twice; feed-forward; norm; modulation
    assert count("blocks.") == 30 * 163_656_704
    assert count("audio_blocks.") == 30 * 46_440_704
    assert count("a2v_blocks.") == 15 * 28_339_201 and count("v2a_blocks.") == 15 * 14_164_992
    assert count("") == pytest.approx(7.06e9, abs=0.01e9)
    stored = read_shapes(PARITY / "joint_model_weights.safetensors")
    assert {unnumbered(key) for key in sizes} == {unnumbered(key) for key in stored}
    for blocks, number in (
        ("blocks", config["num_blocks"]),
        ("audio_blocks", config["num_blocks"]),
        ("a2v_blocks", len(config["interaction_blocks"])),
        ("v2a_blocks", len(config["interaction_blocks"])),
    ):
        found = {int(match[1]) for key in sizes if (match := re.match(rf"{blocks}\.(\d+)\.", key))}
        assert found == set(range(number))


def test_nano_loads_none_of_it(tmp_path: Path) -> None:
    code = (
        "import sys; from uniavgen_cli.engine.engine import Engine; engine = Engine.from_preset(sys.argv[1]);"
        "engine.generate('a man', speech='Hello.');"
        "print([m for m in ('diffusers', 'transformers', 'ftfy', 'tokenizers', 'jieba', 'pypinyin')"
        " if m in sys.modules])"
    )
    preset = write_tiny_preset(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(preset)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_missing_packages_are_named(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"pip install 'uniavgen\[released\]'"):
        Engine.from_preset(str(preset))


@pytest.mark.gpu
def test_it_runs_on_a_gpu(preset: Path, media: Path) -> None:
    engine = Engine.from_preset(str(preset), ["runtime.device=cuda", "runtime.dtype=bfloat16"])
    assert {parameter.device.type for parameter in engine.video_vae.parameters()} == {"cuda"}
    clip = engine.generate("a man", speech="Hi.", face=media / "face.png", seed=3)
    assert clip.num_frames == 33 and np.isfinite(clip.samples).all() and clip.samples.std() > 0
    plan = check(Request(task="dub", video=media / "talk.mp4", speech="Hi."), engine.preset)
    slow = Engine.from_preset(str(preset))
    ours, theirs = (prepare(plan, made.video_vae, made.captions, made.vocabulary) for made in (engine, slow))
    assert ours.given.video is not None and theirs.given.video is not None
    assert (ours.given.video - theirs.given.video).abs().max() < 0.02  # float32 both, convolutions in TF32
    scale = theirs.positive.caption.abs().max()
    assert (ours.positive.caption - theirs.positive.caption).abs().max() < 0.05 * scale  # bfloat16


def test_the_clip_is_the_same_for_the_same_seed(engine: Engine, media: Path) -> None:
    first = engine.generate("a man", speech="Hi.", face=media / "face.png", seed=3)
    again = engine.generate("a man", speech="Hi.", face=media / "face.png", seed=3)
    other = engine.generate("a man", speech="Hi.", face=media / "face.png", seed=4)
    assert np.array_equal(first.frames, again.frames) and np.array_equal(first.samples, again.samples)
    assert not np.array_equal(first.frames, other.frames)
    assert first.samples.std() > 0
