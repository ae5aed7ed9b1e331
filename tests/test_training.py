"""The training loop and the joint stage, on real drawn clips and a model of the smallest size."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import write_tiny_preset
from torch import Tensor, nn

from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
from uniavgen_cli.config import Preset, load_preset, weights_folder
from uniavgen_cli.data import cache
from uniavgen_cli.data.dataset import sample_clip, sample_picture
from uniavgen_cli.data.voice import MANNERS, PHONEMES
from uniavgen_cli.engine.tasks import TASKS
from uniavgen_cli.errors import InputError, WeightsError
from uniavgen_cli.models.state_dict import load_module
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
from uniavgen_cli.training import joint_stage as joint
from uniavgen_cli.training import watches
from uniavgen_cli.training.trainer import Progress, Stage, rate, run
from uniavgen_cli.training.vae_stage import latent_importance


def line_stage(steps: int = 40, **changes: object) -> Stage:
    """Fits y = 3 x + 1; everything about a batch follows from its step."""
    torch.manual_seed(0)

    def batch(step: int) -> dict[str, Tensor]:
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return {"x": x, "y": 3 * x + 1}

    def loss(module: nn.Module, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {"square": (module(batch["x"]) - batch["y"]).square().mean(1)}

    def export(weights: dict[str, Tensor], folder: Path) -> None:
        torch.save(weights, folder / "weights.pt")

    return replace(
        Stage(
            name="line",
            module=nn.Linear(1, 1),
            batch=batch,
            loss=loss,
            export=export,
            steps=steps,
            lr=0.3,
            warmup=2,
            ema=0.5,
        ),
        **changes,
    )


def test_a_run_learns_reports_and_exports(tmp_path: Path) -> None:
    seen: list[Progress] = []
    assert run(line_stage(), tmp_path, report=seen.append, report_every=10)
    assert [p.step for p in seen] == [10, 20, 30, 40]
    assert seen[-1].losses["square"] < 0.05 * seen[0].losses["square"]
    assert torch.load(tmp_path / "weights.pt")["weight"].item() == pytest.approx(3, abs=0.2)
    assert len((tmp_path / "losses.csv").read_text().splitlines()) == 4


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    run(line_stage(), tmp_path / "whole")
    stage = line_stage()

    def interrupting(step: int) -> dict[str, Tensor]:
        if step == 17:
            os.kill(os.getpid(), signal.SIGINT)
        return line_stage().batch(step)

    assert not run(replace(stage, batch=interrupting), tmp_path / "cut")
    assert not (tmp_path / "cut" / "weights.pt").exists()
    assert run(line_stage(), tmp_path / "cut")
    whole, cut = (torch.load(tmp_path / name / "weights.pt") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(line_stage(steps=2), tmp_path)
    with pytest.raises(WeightsError, match="does not fit this model"):
        run(line_stage(module=nn.Linear(2, 1)), tmp_path)


@pytest.mark.parametrize("left", [0, 700])
def test_a_checkpoint_that_is_cut_short_is_told_of(tmp_path: Path, left: int) -> None:
    run(line_stage(steps=2), tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:left])
    with pytest.raises(WeightsError, match="checkpoint.pt can't be read"):
        run(line_stage(), tmp_path)


def test_a_run_that_was_cut_writes_its_looks_at_the_mask_once(tmp_path: Path) -> None:
    for step in (4, 8, 12, 8):  # killed after the third, and on from a checkpoint before the second
        watches._add_row(tmp_path / "face-mask.csv", watches.MASK_HEADER, [step, "0.5000", "0.5000"])
    lines = (tmp_path / "face-mask.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "4", "8"]


def test_a_step_without_a_finite_gradient_is_left_out(tmp_path: Path) -> None:
    stage = line_stage()

    def broken(module: nn.Module, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        losses = stage.loss(module, batch, step)
        return {"square": losses["square"] * (float("nan") if step == 20 else 1.0)}

    run(replace(stage, loss=broken), tmp_path)
    assert torch.isfinite(torch.load(tmp_path / "weights.pt")["weight"]).all()


def test_the_rate_warms_up_stays_and_falls() -> None:
    stage = line_stage(steps=100, warmup=10, decay_from=0.5)
    assert rate(0, stage) == pytest.approx(0.1)
    assert rate(30, stage) == 1
    assert rate(50, stage) == 1 > rate(75, stage) > rate(99, stage) > 0.01


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Preset:
    return load_preset(write_tiny_preset(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def bank(tiny: Preset) -> joint.ClipBank:
    """Three drawn, speaking clips of 33 frames through the tiny codecs."""
    folder = weights_folder(tiny)
    vae = VideoVAE.load(folder / "video_vae.safetensors", VideoVAEConfig(**tiny.video_vae))
    captions = CaptionEncoder.load(folder / "caption.safetensors", CaptionConfig(**tiny.caption))
    clips = []
    for index in range(3):
        clip = sample_clip(3, index, lengths=(33,), sizes=((64, 64),))
        tensors = {**cache.sound_arrays(clip), **cache.picture_arrays(clip, vae)}
        clips.append(cache.CachedClip(tensors, cache.texts_of(clip)))
    return joint.ClipBank(clips, captions)


def tiny_model(tiny: Preset) -> UniAVGen:
    torch.manual_seed(0)
    return UniAVGen(UniAVGenConfig(**tiny.model))


def how(**changes: object) -> joint.JointTraining:
    return joint.JointTraining(**{"steps": 30, "batch_size": 4, "bf16": False, **changes})


def test_a_cached_clip_is_what_the_model_reads(bank: joint.ClipBank) -> None:
    group = bank.groups[0].tensors
    assert group["mel"].shape == (3, 206, 80) and group["phonemes"].shape == (3, 206)
    assert group["latents"].shape == (3, 9, 4, 4, 4)
    assert group["face_mask"].shape == (3, 9, 2, 2) and 0 < group["face_mask"].mean() < 1
    assert (
        group["mouth_mask"].shape == (3, 9, 4, 4) and group["mouth_mask"].mean() < group["face_mask"].mean()
    )
    assert (group["phonemes"] > 0).float().mean() > 0.2


def test_every_task_comes_by_its_odds_and_gives_what_its_row_says(tiny: Preset, bank: joint.ClipBank) -> None:
    stage = joint.joint_stage(tiny_model(tiny), bank, how(steps=300, carried=0.0))
    seen: dict[tuple[bool, bool], int] = {}
    for step in range(120):
        batch = stage.batch(step)
        frames, tokens = batch["latents"].shape[2], batch["mel"].shape[1]
        directions = batch["a2v"], batch["v2a"]
        seen[directions] = seen.get(directions, 0) + 1
        if not batch["a2v"]:
            assert batch["given_video"] == frames and batch["given_audio"] == 0
        if batch["given_audio"] == tokens:
            assert not batch["v2a"] and batch["given_video"] == 1
            assert not batch["phonemes"][:, -tokens:].any() and (batch["speech"] == -1).all()
        elif batch["given_audio"]:
            assert 1 <= batch["given_video"] < frames
    total = sum(row.odds for row in TASKS.values())
    no_a2v, no_v2a = (
        sum(row.odds for row in TASKS.values() if not getattr(row, name)) / total for name in ("a2v", "v2a")
    )
    assert seen[False, True] / 120 == pytest.approx(no_a2v, abs=0.12)
    assert seen[True, False] / 120 == pytest.approx(no_v2a, abs=0.12)


def test_the_phonemes_tell_the_emotion_of_some_clips(tiny: Preset, bank: joint.ClipBank) -> None:
    emotions = [MANNERS.index(emotion) for emotion in bank.groups[0].texts["emotion"]]
    loud, vocab = np.mean(np.array(emotions) > 0), tiny.model["phoneme_vocab"]
    assert loud > 0
    for share in (0.0, 0.5):
        mannered = how(manner_told=share, dropped=0.0, odds={"generate": 1.0})
        stage = joint.joint_stage(tiny_model(tiny), bank, mannered)
        batches = [stage.batch(step)["phonemes"] for step in range(60)]
        manners = torch.cat([phonemes // vocab for phonemes in batches])
        assert (manners == manners[:, -1:]).all()
        assert (manners[:, 0] > 0).float().mean() == pytest.approx(share * loud, abs=0.1 * (share > 0))
        assert set(manners.unique().tolist()) <= {0, *emotions}
        assert max(int((phonemes % vocab).max()) for phonemes in batches) < len(PHONEMES)


def test_odds_of_what_is_no_task_are_refused(tiny: Preset, bank: joint.ClipBank) -> None:
    model = UniAVGen(UniAVGenConfig(**tiny.model))
    with pytest.raises(ValueError, match="odds of sing: the tasks are generate, "):
        joint.joint_stage(model, bank, joint.JointTraining(steps=1, odds={"sing": 1.0}))


def test_some_batches_go_on_from_a_window_before(tiny: Preset, bank: joint.ClipBank) -> None:
    stage = joint.joint_stage(tiny_model(tiny), bank, how(carried=0.5, odds={"animate": 1.0, "dub": 1.0}))
    batches = [stage.batch(step) for step in range(40)]
    kept = 0
    for batch in batches:
        frames, tokens = batch["latents"].shape[2], batch["mel"].shape[1]
        shown, heard = batch["given_video"], batch["given_audio"]
        assert (
            (heard == tokens and 1 <= shown < frames)
            if batch["a2v"]
            else (shown == frames and heard < tokens)
        )
        kept += shown > 1 if batch["a2v"] else heard > 0
    assert 8 <= kept <= 28
    references = [
        (batch["latents"] == batch["reference_frame"]).flatten(3).all(3).all(1).any(1).all()
        for batch in batches
    ]
    assert all(references)  # some frame of the clip itself, not always the first


def test_what_was_said_before_a_continuation_is_in_some_batches_anothers(
    tiny: Preset, bank: joint.ClipBank
) -> None:
    stage = joint.joint_stage(tiny_model(tiny), bank, how(odds={"continue-voice": 1.0}))
    mels, lines = bank.groups[0].tensors["mel"].float(), bank.groups[0].tensors["phonemes"].long()
    others = 0
    for step in range(30):
        batch = stage.batch(step)
        given, tokens = batch["given_audio"], batch["mel"].shape[1]
        made = [int((mels[:, given:] == mel[given:]).flatten(1).all(1).nonzero()[0]) for mel in batch["mel"]]
        another = not torch.equal(batch["mel"][:, :given], mels[made][:, :given])
        said_by = made[-1:] + made[:-1] if another else made
        assert torch.equal(batch["mel"][:, :given], mels[said_by][:, :given])
        told = batch["phonemes"][:, -tokens:]
        for line, own, before in zip(told, made, said_by, strict=True):
            for part, whole in ((line[:given], lines[before, :given]), (line[given:], lines[own, given:])):
                assert torch.equal(part, whole) or not part.any()  # of some clips the text is left out
        others += another
    assert 6 <= others <= 20


def test_a_batch_follows_from_its_step(tiny: Preset, bank: joint.ClipBank) -> None:
    first, again, other = (joint.joint_stage(tiny_model(tiny), bank, how()).batch(step) for step in (5, 5, 6))
    assert torch.equal(first["t"], again["t"]) and torch.equal(first["phonemes"], again["phonemes"])
    assert not torch.equal(first["t"], other["t"])


@pytest.mark.parametrize("alone", [False, True])
def test_the_joint_model_learns_and_its_weights_load(
    alone: bool, tiny: Preset, bank: joint.ClipBank, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    stage = joint.joint_stage(tiny_model(tiny), bank, how(steps=60, lr=5e-3, audio_alone=alone))
    assert run(stage, tmp_path, report=seen.append, report_every=20)
    assert seen[-1].losses["audio"] < 0.9 * seen[0].losses["audio"]
    if not alone:
        assert seen[-1].losses["video"] < 0.98 * seen[0].losses["video"]
    model = load_module(
        lambda: UniAVGen(UniAVGenConfig(**tiny.model)), tmp_path / "joint.safetensors.index.json"
    )
    assert not model.training


def test_the_mask_loss_fades_and_is_of_the_faces_box(tiny: Preset, bank: joint.ClipBank) -> None:
    stage = joint.joint_stage(tiny_model(tiny), bank, how(steps=100))
    batch = stage.batch(0)
    torch.manual_seed(0)
    early, late = (stage.loss(stage.module, batch, step) for step in (0, 40))
    assert late["mask"].mean().item() == pytest.approx(early["mask"].mean().item() * 0.5, rel=1e-3)
    assert "mask" not in stage.loss(stage.module, batch, 90)


@pytest.fixture
def pictures(tiny: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cache.CachedPictures:
    """Four drawn pictures, cached and read back."""
    monkeypatch.setattr(cache, "PICTURE_SHARD", 4)
    path = weights_folder(tiny) / "video_vae.safetensors"
    source = cache.VAESource(path=path, config=tiny.video_vae, digest="one")
    assert cache._write_pictures(tmp_path, 3, 0, source, 1.0, "drawn by a test") == 4
    return cache.load_pictures(tmp_path)


def caption_encoder(tiny: Preset) -> CaptionEncoder:
    return CaptionEncoder.load(weights_folder(tiny) / "caption.safetensors", CaptionConfig(**tiny.caption))


def test_clips_that_were_made_otherwise_are_not_taken_for_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SHARD", 1)
    assert cache._write_shard(tmp_path, 5, 0, None, 1.0, 0.0, "seed 5") == 1
    assert list(cache.build(tmp_path, seed=5, first=0, count=1)) == []
    with pytest.raises(InputError, match=r"audio-000000.*made otherwise: seed 5; now asked for: seed 6"):
        list(cache.build(tmp_path, seed=6, first=0, count=1))


def test_a_cached_picture_is_what_was_drawn(tiny: Preset, pictures: cache.CachedPictures) -> None:
    vae = VideoVAE.load(weights_folder(tiny) / "video_vae.safetensors", VideoVAEConfig(**tiny.video_vae))
    drawn = sample_picture(3, 2)
    with torch.inference_mode():
        latents = vae.encode(cache.frames_of(drawn.pixels[None]))[0, :, 0]
    assert torch.equal(pictures.latents[2], latents.half()) and pictures.captions[2] == drawn.caption
    x0, y0, x1, y1 = drawn.face_box
    cells = np.prod(np.array(latents.shape[1:]) / drawn.pixels.shape[:2]) * (x1 - x0) * (y1 - y0)
    assert pictures.faces[2].float().sum().item() == pytest.approx(cells, rel=0.02)
    shown = pictures.expressions[2].float().nonzero()[:, 0] * 128 / latents.shape[1]  # pixels from the top
    assert y0 < shown.min() < (y0 + y1) / 2 < shown.max() < y1
    assert len(set(pictures.captions)) > 1


def test_first_pictures_are_of_the_commonest_size() -> None:
    clips = [
        cache.CachedClip(
            {
                "latents": torch.full((3, 2, *size), float(i)),
                "face_mask": torch.eye(2).repeat(3, 1, 1),
                "mouth_mask": torch.full((3, *size), 0.1 * i),
            },
            {"caption": f"person {i}"},
        )
        for i, size in enumerate([(4, 4), (4, 6), (4, 4)])
    ]
    shown = cache.first_pictures(clips)
    assert shown.captions == ["person 0", "person 2"]
    assert shown.latents.shape == (2, 2, 4, 4) and shown.latents[1].eq(2).all()
    assert torch.equal(shown.faces, torch.eye(2).kron(torch.ones(2, 2)).repeat(2, 1, 1))
    assert torch.equal(shown.expressions, torch.tensor([0.0, 0.2]).view(2, 1, 1).expand(2, 4, 4))


def test_single_pictures_come_by_their_share_and_teach_the_video_branch(
    tiny: Preset, bank: joint.ClipBank, pictures: cache.CachedPictures
) -> None:
    shelf = joint.PictureBank(pictures, caption_encoder(tiny))
    stage = joint.joint_stage(
        tiny_model(tiny), bank, how(steps=300, picture_share=0.5, picture_batch=5), pictures=shelf
    )
    kinds = ["picture" in stage.batch(step) for step in range(80)]
    assert 0.3 < np.mean(kinds) < 0.7
    batch = stage.batch(kinds.index(True))
    assert batch["picture"].shape == (5, *pictures.latents.shape[1:2], 1, *pictures.latents.shape[2:])
    loss = stage.loss(stage.module, batch, 0)["picture"]
    loss.mean().backward()
    assert loss.shape == (5,)
    taught = {name.split(".")[0] for name, p in stage.module.named_parameters() if p.grad is not None}
    assert "head" in taught and not taught & {"audio_blocks", "a2v_blocks", "v2a_blocks"}


def test_importance_weighs_the_channels_of_the_video_loss(
    tiny: Preset, bank: joint.ClipBank, pictures: cache.CachedPictures
) -> None:
    shelf = joint.PictureBank(pictures, caption_encoder(tiny))
    channels = tiny.model["video_latent_channels"]
    one_by_one = torch.eye(channels) * channels
    losses = []
    for importance in (None, *one_by_one):
        stage = joint.joint_stage(
            tiny_model(tiny), bank, how(picture_share=1.0), pictures=shelf, importance=importance
        )
        losses.append(stage.loss(stage.module, stage.batch(0), 0)["picture"].detach())
    torch.testing.assert_close(torch.stack(losses[1:]).mean(0), losses[0])
    assert torch.stack(losses[1:]).std(0).min() > 0


def test_a_clean_pictures_error_counts_alike_at_low_noise(
    tiny: Preset, bank: joint.ClipBank, pictures: cache.CachedPictures
) -> None:
    model = UniAVGen(UniAVGenConfig(**{**tiny.model, "clean_video": True}))  # from scratch it gives nothing
    shelf = joint.PictureBank(pictures, caption_encoder(tiny))
    stage = joint.joint_stage(model, bank, how(picture_share=1.0, picture_batch=3), pictures=shelf)
    batch = {**stage.batch(0), "t": torch.tensor([0.1, 0.3, 0.8])}
    weight = batch["weight"]
    most = 1 + joint.FACE_WEIGHT + joint.EXPRESSION_WEIGHT
    assert weight.min() == 1 and most / 2 < weight.max() <= most
    missed = (batch["picture"].square().mean((1, 2)) * weight).sum((1, 2)) / weight.sum((1, 2))
    expected = missed / torch.tensor([0.4, 0.4, 0.8]) ** 2
    torch.testing.assert_close(stage.loss(model, batch, 0)["picture"].detach(), expected)


def test_what_is_seen_most_weighs_most(tiny: Preset) -> None:
    vae = VideoVAE.load(weights_folder(tiny) / "video_vae.safetensors", VideoVAEConfig(**tiny.video_vae))
    before = latent_importance(vae)
    assert before.mean().item() == pytest.approx(1) and before.min() >= 0
    with torch.no_grad():
        vae.latent_std[1] *= 4
    after = latent_importance(vae)
    torch.testing.assert_close(after[1] / after[0], 4 * before[1] / before[0])


def test_muon_moves_the_blocks_matrices_the_same_in_every_direction(
    tiny: Preset, bank: joint.ClipBank, tmp_path: Path
) -> None:
    def moved(muon: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = tiny_model(tiny)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        stage = joint.joint_stage(model, bank, how(steps=2, muon=muon, odds={"generate": 1.0}))
        run(stage, tmp_path / str(muon))
        return {name: value - before[name] for name, value in model.state_dict().items()}

    def spread(change: torch.Tensor) -> float:
        singular = torch.linalg.svdvals(change)
        return (singular[len(singular) // 2] / singular[0]).item()

    adamw, muon = moved(False), moved(True)
    name = "audio_blocks.1.ffn.0.weight"
    assert spread(adamw[name]) < 0.4 < 0.6 < spread(muon[name])
    assert 0.1 < muon[name].norm() / adamw[name].norm() < 1  # AdamW's first steps are its largest
    # heads and what reads the input are steered as before, as far as the first step goes
    assert 0.8 < muon["head.head.weight"].norm() / adamw["head.head.weight"].norm() < 1.25


def test_a_held_audio_branch_stays_as_it_was(tiny: Preset, bank: joint.ClipBank, tmp_path: Path) -> None:
    model = tiny_model(tiny)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stage = joint.joint_stage(model, bank, how(steps=3, hold_audio=True, odds={"generate": 1.0}))
    run(stage, tmp_path)
    moved = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert {"blocks", "a2v_blocks", "v2a_blocks", "head"} <= moved
    assert not any(f"{name}.".startswith(joint.AUDIO_PARTS) for name in moved)


def test_jitter_moves_phonemes_and_keeps_their_order() -> None:
    line = torch.arange(1, 201)
    moved = joint._jittered(line, np.random.default_rng(1))
    assert not torch.equal(moved, line)
    assert (moved.diff() >= -3).all() and (moved - line).abs().max() < 60
