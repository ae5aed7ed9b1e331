"""The ablations at toy size: each rule reads what it says, every run leaves a row, tables hold them all."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from joint_inputs import FRAMES, PER_FRAME, TOKENS, audio_stream, conditions, on, tiny_model, video_stream
from tiny_model import write_tiny_preset
from two_processes import captions_of

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


def test_small_models_are_taught_by_every_rule_and_a_cut_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "load_opening_reader", lambda path: OpeningReader().eval())
    preset, out = str(write_tiny_preset(tmp_path)), tmp_path / "out"
    sizes = json.dumps({"num_blocks": 2, "interaction_blocks": [0], "patch": [1, 1, 1]})
    arguments = [
        "trained", "--preset", preset, "--out", str(out), "--v2a-steps", "2", "--a2v-steps", "3",
        "--seeds", "1", "--clips", "4", "--unseen", "3", "--batch", "2", "--sizes", sizes,
    ]  # fmt: skip
    ablations.main([*arguments, "--arms", "0", "4"])
    assert len((out / "trained.jsonl").read_text().splitlines()) == 2
    ablations.main(arguments)
    rows = ablation_tables.read(out / "trained.jsonl")
    assert len(rows) == len(ablations.ARMS) == 12
    assert {(row["direction"], row["rule"], row["mask"]) for row in rows} == set(ablations.ARMS)
    assert len({row["parameters"] for row in rows}) == 1
    for row in rows:
        assert all(-1 <= row[name] <= 1 for name in ("follows", "other")) and 0 <= row["iou"] <= 1
        assert row["steps"] == (2 if row["direction"] == "v2a" else 3)
    # a table is of runs alike: those of another rate are a table of their own
    ablations.main([*arguments, "--lr", "0.5", "--arms", "7"])
    rows = ablation_tables.read(out / "trained.jsonl")
    assert len(rows) == 13 and len(ablation_tables.alike(rows, ablation_tables.TRAINED_ALIKE)) == 1
    ablations.main([*arguments[:-2], "--sizes", sizes, "--arms", "7"])  # is there: nothing is added
    (out / "trained.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows[:12]) + '{"direction": "a'
    )
    assert len(ablation_tables.read(out / "trained.jsonl")) == 12  # a row half written is none
    page = tmp_path / "page.md"
    empty = "".join(f"<!-- {name} -->\nNot measured.\n<!-- /{name} -->\n" for name in ("interaction", "mask"))
    page.write_text(f"Before.\n{empty}After.\n")
    ablations.main(["tables", "--out", str(out), "--page", str(page)])
    filled = page.read_text()
    assert filled.startswith("Before.\n<!-- interaction -->\n\n| asked | rule |") and filled.endswith(
        "\nAfter.\n"
    )
    assert "![interaction](plots/interaction.svg)" in filled and "Not measured" not in filled
    assert (tmp_path / "plots" / "mask.svg").read_text().startswith("<svg")
    text = (out / "tables.md").read_text()
    assert "(A2V) | global |" in text and "(V2A) | decaying |" in text and "2 steps of 2 clips" in text
    assert (out / "interaction.svg").read_text().startswith("<svg") and (out / "mask.svg").exists()


def test_what_follows_is_read_of_the_right_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knew the answer follows its own clip and not another's."""
    from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
    from uniavgen_cli.config import load_preset
    from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig

    preset = load_preset(write_tiny_preset(tmp_path))
    codec = VideoVAE(VideoVAEConfig(**preset.video_vae)).eval()
    model = UniAVGen(UniAVGenConfig(**preset.model)).eval()
    clips = ablations.drawn_clips(tmp_path / "unseen.safetensors", codec, 5, 3, 64, [1, 2, 2])
    again = ablations.drawn_clips(tmp_path / "unseen.safetensors", codec, 5, 3, 64, [1, 2, 2])
    assert all(torch.equal(a.tensors["mel"], b.tensors["mel"]) for a, b in zip(clips, again, strict=True))
    smaller = ablations.drawn_clips(tmp_path / "unseen.safetensors", codec, 5, 2, 64, [1, 1, 1])
    assert len(smaller) == 2 and smaller[0].tensors["face_mask"].shape == (9, 4, 4)
    truths = iter([clip.tensors["opening"].numpy() for clip in clips])
    reader = OpeningReader().eval()
    monkeypatch.setattr(reader, "read", lambda frames: next(truths))

    def knowing(module: torch.nn.Module, batch: dict[str, object]) -> object:
        made, noises = forward(module, batch)
        mel = batch["mel"]
        assert isinstance(mel, torch.Tensor)
        return replace(made, audio=noises.audio - mel), noises

    forward = ablations.joint_forward
    monkeypatch.setattr(ablations, "joint_forward", knowing)
    unseen = ablations.InOrder(clips, captions_of(preset))
    for direction, most in (("a2v", 0.9), ("v2a", 0.99)):
        row = ablations.followed(model, direction, unseen, codec, reader)
        assert row["follows"] == pytest.approx(1, abs=1e-3) and row["other"] < most and 0 <= row["iou"] <= 1


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
    earlier = json.dumps(rows[0] | {"weights": "others"})
    (out / "guidance.jsonl").write_text("\n".join([earlier, *map(json.dumps, rows)]) + "\n")  # is left out
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
