"""The instruments: curves compared, an opening read from pixels, and the report on the whole model."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from uniavgen_cli.evaluation import opening
from uniavgen_cli.evaluation.synchrony import best_lag, correlation

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "nano_bars.py"


@pytest.fixture(scope="module")
def bars() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nano_bars", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nano_bars"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_correlation_is_blind_to_scale_and_knows_stillness() -> None:
    curve = np.random.default_rng(0).random(50).astype(np.float32)
    assert correlation(curve, 3 * curve + 2) == pytest.approx(1)
    assert correlation(curve, -curve) == pytest.approx(-1)
    assert correlation(curve, np.full(50, 0.3, np.float32)) == 0.0
    with pytest.raises(ValueError, match="50"):
        correlation(curve, curve[1:])


@pytest.mark.parametrize("lag", [-4, -1, 0, 3])
def test_the_best_lag_is_positive_for_a_late_curve(lag: int) -> None:
    truth = np.random.default_rng(1).random(60)
    found, value = best_lag(np.roll(truth, lag), truth)
    assert found == lag and value == pytest.approx(1)


def test_too_short_for_a_lag() -> None:
    with pytest.raises(ValueError, match="6 frames"):
        best_lag(np.arange(6.0), np.arange(6.0))


def test_an_opening_reader_learns_and_is_kept(tmp_path: Path) -> None:
    losses: list[float] = []
    trained = opening.train_opening_reader(
        steps=40, num_speakers=4, batch_size=12, report=lambda step, loss: losses.append(loss)
    )
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])

    save_file(trained.state_dict(), tmp_path / "opening.safetensors")
    kept = opening.load_opening_reader(tmp_path / "opening.safetensors")
    frames = opening.drawn_faces(1, 0, num_frames=5).frames
    np.testing.assert_array_equal(kept.read(frames), trained.read(frames))
    assert kept.read(frames[:, 16:112]).shape == (5,)  # a picture wider than high


def test_moved_pictures_keep_their_places() -> None:
    """A bright spot lies where the map of `_elsewhere` and the square of `_crop` say."""
    spot = np.zeros((128, 128, 3), np.uint8)
    cv2.circle(spot, (80, 50), 4, (255, 255, 255), -1, cv2.LINE_AA)
    place = np.array([80.5, 50.5])  # pixel 80 has its middle at 80.5
    picture, move, _ = opening._elsewhere(spot, np.random.default_rng(3))
    np.testing.assert_allclose(_middle(picture), move @ [*place, 1.0], atol=0.1)
    crop = opening._crop(spot, place + [3.0, -2.0], opening.READ_SIDE / opening.READ_SHARE)  # pixel for pixel
    np.testing.assert_allclose(_middle(crop), [16 - 3, 16 + 2], atol=0.1)


def _middle(picture: np.ndarray) -> np.ndarray:
    weight = picture[..., 0].astype(float)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def test_psnr_of_the_whole_and_of_the_mouth(bars: ModuleType) -> None:
    truth = np.full((2, 16, 16, 3), 100, np.uint8)
    made = truth.copy()
    assert bars.psnr(made, truth) == 99.0
    made[:, 4:8, 4:8] += 10
    boxes = np.tile(np.array([4.0, 4.0, 8.0, 8.0]), (2, 1))
    assert bars.mouth_psnr(made, truth, boxes) == pytest.approx(20 * np.log10(25.5), abs=1e-3)
    assert bars.psnr(made, truth) == pytest.approx(20 * np.log10(25.5) + 10 * np.log10(16), abs=1e-3)
    assert bars.mouth_psnr(made, truth, boxes + 8) == 99.0


def test_the_summary_weighs_errors_and_knows_the_bars(bars: ModuleType) -> None:
    rows = [
        {"generate_errors": 5, "plan_phonemes": 10, "animate": 0.4, "animate_other": 0.05},
        {"generate_errors": 5, "plan_phonemes": 40, "animate": 0.5, "animate_other": 0.05},
    ]
    found = {metric["key"]: metric for metric in bars.summary(rows)}
    assert set(found) == {"generate_errors", "animate", "animate_other"}
    assert found["generate_errors"]["value"] == pytest.approx(0.2) and found["generate_errors"]["met"]
    assert found["animate"]["value"] == pytest.approx(0.45) and found["animate"]["met"] is False
    assert found["animate"]["error"] == pytest.approx(0.05 / np.sqrt(2))
    assert found["animate_other"]["error"] == pytest.approx(0, abs=1e-9) and found["animate_other"]["met"]
    assert "MISSED" in bars.table(bars.summary(rows))


def test_sheets_hold_clips_of_other_lengths(bars: ModuleType, tmp_path: Path) -> None:
    made = np.zeros((9, 32, 32, 3), np.uint8)
    bars.write_sheet(tmp_path / "sheet.png", made[:5], made, np.zeros(5), np.full(9, 0.1))
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (32 + 32 + 96, 3 * 32, 3)
    assert sheet[:32, 64:].min() == 255 and sheet[32:64].max() == 0
    sound = np.random.default_rng(0).standard_normal(4800).astype(np.float32)
    assert bars.mel_picture([sound, sound[:2400]], pixels=2).shape == (2 * 84 * 2, 20 * 2, 3)


def test_the_report_of_an_untrained_model(bars: ModuleType, tmp_path: Path) -> None:
    """Every part runs, on weights that know nothing: chance, not a crash."""
    from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
    from uniavgen_cli.codecs.vocoder import Vocoder, VocoderConfig
    from uniavgen_cli.config import load_preset
    from uniavgen_cli.evaluation.recogniser import Recogniser, RecogniserConfig
    from uniavgen_cli.models.state_dict import save_sharded
    from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
    from uniavgen_cli.training import caption_stage

    small = ["model.num_blocks=1", "model.interaction_blocks=[0]", "sampling.skip_block=0"]
    small.append("clip.max_frames=49")
    preset = load_preset("nano", small)
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(0)
    save_sharded(UniAVGen(UniAVGenConfig(**preset.model)).state_dict(), folder)
    save_file(VideoVAE(VideoVAEConfig(**preset.video_vae)).state_dict(), folder / "video_vae.safetensors")
    save_file(Vocoder(VocoderConfig(**preset.vocoder)).state_dict(), folder / "vocoder.safetensors")
    encoder = caption_stage.CaptionEncoder(caption_stage.CaptionConfig(**preset.caption), ("woman", "man"))
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    caption_stage.export(weights, encoder.vocabulary, folder / "caption.safetensors")
    save_file(Recogniser(RecogniserConfig()).state_dict(), tmp_path / "recogniser.safetensors")
    save_file(opening.OpeningReader().state_dict(), tmp_path / "opening.safetensors")

    report = tmp_path / "out" / "report.json"
    arguments = ["--weights", str(folder), "--clips", "2", "--steps", "1", "--sheets", "1"]
    arguments += ["--cache", str(tmp_path), "--out", str(report)]
    bars.main([*arguments, *(part for override in small for part in ("--set", override))])

    written = json.loads(report.read_text(encoding="utf-8"))
    assert written["clips"] == 2 and written["preset"]["sampling"]["steps"] == 1
    assert {metric["key"] for metric in written["metrics"]} == {metric.key for metric in bars.METRICS}
    values = {metric["key"]: metric["value"] for metric in written["metrics"]}
    assert values["generate_errors"] > 0.5  # nothing was learnt
    assert all(np.isfinite(value) for value in values.values())
    assert sorted(path.name for path in report.parent.glob("*000*")) == [
        "animate-000.mp4",
        "animate-000.png",
        "generate-000-sound.png",
        "generate-000.mp4",
        "generate-000.png",
    ]
