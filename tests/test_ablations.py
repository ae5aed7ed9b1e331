"""The ablations at toy size: each rule reads what it says, every run leaves a row, tables hold them all."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from joint_inputs import FRAMES, PER_FRAME, TOKENS, audio_stream, conditions, on, tiny_model, video_stream
from tiny_model import write_tiny_preset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import ablation_tables  # noqa: E402
import ablations  # noqa: E402
from interactions import KINDS, interacting, own_frames, own_spans  # noqa: E402

from uniavgen_cli.evaluation.opening import OpeningReader  # noqa: E402
from uniavgen_cli.evaluation.recogniser import Recogniser, RecogniserConfig  # noqa: E402
from uniavgen_cli.models.interaction import Grid  # noqa: E402

GRID = Grid(frames=FRAMES, rows=2, columns=3)


def read_by(layer: torch.nn.Module, *, audio_to_video: bool) -> torch.Tensor:
    """Which audio tokens each latent frame reads, or which frames each audio token: (f, t) bool."""
    model = tiny_model()
    video = torch.randn(1, FRAMES * PER_FRAME, model.config.video_dim, requires_grad=True)
    audio = torch.randn(1, TOKENS, model.config.audio_dim, requires_grad=True)
    mask = torch.ones(1, FRAMES * PER_FRAME)
    found = []
    for i in range(FRAMES if audio_to_video else TOKENS):
        if audio_to_video:
            out = layer(video, audio, mask, GRID, 0)[0].unflatten(0, (FRAMES, -1))[i]
            (grad,) = torch.autograd.grad(out.square().sum(), audio)
            found.append(grad[0].abs().sum(-1) > 0)
        else:
            out = layer(audio, video, mask, GRID, 0)[0, i]
            (grad,) = torch.autograd.grad(out.square().sum(), video)
            found.append(grad[0].abs().sum(-1).unflatten(0, (FRAMES, -1)).sum(-1) > 0)
    rows = torch.stack(found)
    return rows if audio_to_video else rows.T


@pytest.mark.parametrize("kind", KINDS)
def test_each_rule_reads_what_it_says(kind: str) -> None:
    model = interacting(tiny_model(), kind, kind)
    heard = read_by(model.a2v_blocks[0], audio_to_video=True)
    seen = read_by(model.v2a_blocks[0], audio_to_video=False)
    if kind == "global":
        assert heard.all() and seen.all()
    elif kind == "symmetric":
        spans = own_spans(FRAMES, TOKENS)
        assert all(
            row.nonzero().flatten().tolist() == span.tolist() for row, span in zip(heard, spans, strict=True)
        )
        assert (seen.sum(0) == 1).all() and torch.equal(seen.int().argmax(0), own_frames(FRAMES, TOKENS))
    else:
        assert (
            heard[1].sum() > own_spans(FRAMES, TOKENS).shape[1] and not heard.all()
        )  # more than its own time
        assert set(seen.sum(0).tolist()) == {1, 2}  # one frame, or two between them


def test_the_rules_change_no_weight_and_the_methods_own_is_the_product() -> None:
    inputs = video_stream(2), audio_stream(2), conditions(12, 10), on(2)
    with torch.inference_mode():
        plain = tiny_model()(*inputs)
        own = interacting(tiny_model(), "asymmetric", "asymmetric")
        assert torch.equal(own(*inputs).video, plain.video)
        for kind in ("global", "symmetric"):
            other = interacting(tiny_model(), kind, kind)
            pairs = zip(other.state_dict().items(), own.state_dict().items(), strict=True)
            assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
            out = other(*inputs)
            assert out.video.isfinite().all() and not torch.allclose(out.video, plain.video)
            assert not torch.allclose(out.audio, plain.audio)


def test_given_parts_take_nothing_by_any_rule() -> None:
    for kind in KINDS:
        model = interacting(tiny_model(), kind, kind)
        picture = torch.randn(1, FRAMES * PER_FRAME, model.config.video_dim)
        sound = torch.randn(1, TOKENS, model.config.audio_dim)
        mask = torch.ones(1, FRAMES * PER_FRAME)
        with torch.inference_mode():
            whole = model.a2v_blocks[0](picture, sound, mask, GRID, 0)
            part = model.a2v_blocks[0](picture, sound, mask, GRID, 2)
            assert torch.allclose(part, whole[:, 2 * PER_FRAME :], atol=1e-5)
            whole = model.v2a_blocks[0](sound, picture, mask, GRID, 0)
            part = model.v2a_blocks[0](sound, picture, mask, GRID, 9)
            assert torch.allclose(part, whole[:, 9:], atol=1e-5)


def test_without_a_mask_all_of_the_picture_takes_part() -> None:
    inputs = video_stream(), audio_stream(), conditions(12), on()
    with torch.inference_mode():
        open_mask = interacting(tiny_model(), "asymmetric", "asymmetric", masked=False)(*inputs)
        assert (open_mask.face_mask_logits.sigmoid() > 0.999999).all()
        prior = torch.full((1, FRAMES, PER_FRAME), 60.0)  # over any logit of the plain model
        steered = tiny_model()(*inputs[:2], replace(inputs[2], face_prior=prior), inputs[3])
    assert torch.allclose(open_mask.video, steered.video, atol=1e-4)


def test_small_models_are_taught_by_every_rule_and_a_cut_run_goes_on(tmp_path: Path) -> None:
    preset, out = str(write_tiny_preset(tmp_path)), tmp_path / "out"
    sizes = json.dumps({"num_blocks": 2, "interaction_blocks": [0]})
    arguments = [
        "trained", "--preset", preset, "--out", str(out), "--steps", "2", "--seeds", "1", "--clips", "4",
        "--unseen", "4", "--batches", "1", "--batch", "2", "--sampled", "0", "--sizes", sizes,
    ]  # fmt: skip
    ablations.main([*arguments, "--arms", "0", "4"])
    assert len((out / "trained.jsonl").read_text().splitlines()) == 2
    ablations.main(arguments)
    rows = ablation_tables.read(out / "trained.jsonl")
    assert {(row["a2v"], row["v2a"], row["mask"]) for row in rows} == set(ablations.ARMS) and len(rows) == 8
    assert len({row["parameters"] for row in rows}) == 1
    for row in rows:
        assert -1 < row["a2v_gain"] < 1 and -1 < row["v2a_gain"] < 1 and 0 <= row["iou"] <= 1
    ablations.main(["tables", "--out", str(out)])
    text = (out / "tables.md").read_text()
    assert "| global | global |" in text and "| decaying |" in text and "2 steps of 2 clips" in text
    assert (out / "interaction.svg").read_text().startswith("<svg") and (out / "mask.svg").exists()


def test_a_sampled_clip_is_read(tmp_path: Path) -> None:
    from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
    from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
    from uniavgen_cli.config import load_preset
    from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig

    preset = load_preset(write_tiny_preset(tmp_path))
    codec = VideoVAE(VideoVAEConfig(**preset.video_vae)).eval()
    clips = ablations.drawn_clips(tmp_path / "unseen.safetensors", codec, 5, 2, 64)
    assert torch.equal(
        ablations.drawn_clips(tmp_path / "unseen.safetensors", codec, 5, 2, 64)[1].tensors["mel"],
        clips[1].tensors["mel"],
    )
    told = CaptionEncoder(CaptionConfig(**preset.caption), ()).encode(["a man", "a woman"]).detach()
    model = UniAVGen(UniAVGenConfig(**preset.model)).eval()
    row = ablations.sampled_opening(model, clips, told, codec, OpeningReader().eval())
    assert set(row) == {"opening", "opening_other"} and all(-1 <= value <= 1 for value in row.values())


def test_guidance_is_measured_on_the_same_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With untrained instruments: what they read means nothing, that all is read and noted does."""
    preset, out = str(write_tiny_preset(tmp_path)), tmp_path / "out"
    monkeypatch.setattr(ablations, "load_opening_reader", lambda path: OpeningReader().eval())
    monkeypatch.setattr(ablations, "load_recogniser", lambda path: Recogniser(RecogniserConfig()).eval())
    arguments = [
        "guidance",
        "--preset",
        preset,
        "--out",
        str(out),
        "--clips",
        "2",
        "--scales",
        "2",
        "--steps",
        "2",
    ]
    ablations.main(arguments)
    rows = ablation_tables.read(out / "guidance.jsonl")
    assert len(rows) == 2 * (1 + len(ablations.GUIDANCES))
    ablations.main(arguments)
    assert len(ablation_tables.read(out / "guidance.jsonl")) == len(rows)
    ablations.main(["tables", "--out", str(out)])
    text = (out / "tables.md").read_text()
    assert text.count("\n| ") == 2 + len(ablations.GUIDANCES) and "2 sampling steps" in text
    assert "polyline" in (out / "guidance-animate.svg").read_text()
    assert sorted(path.suffix for path in out.iterdir()) == [".jsonl", ".md", ".svg", ".svg"]


def test_what_a_setting_sets() -> None:
    kinds = {(kind, scale): keys for kind, scale, keys in ablations.settings([3.0])}
    assert kinds["none", 1.0] == ["sampling.video_guidance=1", "sampling.audio_guidance=1"]
    assert "sampling.modality_guidance_fraction=0.0" in kinds["plain", 3.0]
    assert "sampling.guidance_to=0.5" in kinds["modality-aware in an interval", 3.0]
    assert len(kinds) == 1 + len(ablations.GUIDANCES)
