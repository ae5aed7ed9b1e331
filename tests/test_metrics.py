"""Each metric on what has a known answer: a shifted curve, a cut, a clipped tone, another person."""

import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
import torch

from uniavgen_cli.data.avatar import EMOTIONS, MOUTH_PARAMETERS, render, sample_identity, sample_motion
from uniavgen_cli.data.voice import TimedPhoneme
from uniavgen_cli.evaluation import (
    figures,
    loudness,
    motion,
    mouth,
    pictures,
    seam,
    speech,
    synchrony,
    syncnet,
)
from uniavgen_cli.evaluation.attributes import attributes_right
from uniavgen_cli.evaluation.recogniser import Recogniser
from uniavgen_cli.media import ffmpeg

RATE = 24_000


def test_the_envelope_rises_where_it_is_loud_and_a_late_mouth_is_told_by_its_lag() -> None:
    rng = np.random.default_rng(0)
    loud = np.repeat(rng.random(40) ** 2, RATE // 16)  # another loudness each frame
    samples = (loud * rng.standard_normal(len(loud))).astype(np.float32)
    envelope = synchrony.sound_envelope(samples, RATE, 40, 16)
    assert envelope.shape == (40,) and envelope.min() >= 0 and envelope.max() == 1
    mouth_of = np.convolve(loud[:: RATE // 16], [0.5, 1, 0.5], "same")
    assert synchrony.correlation(envelope, mouth_of) > 0.7
    assert synchrony.best_lag(np.roll(envelope, 3), envelope)[0] == 3
    assert synchrony.best_lag(np.roll(mouth_of, -2), envelope)[0] == -2


def test_the_envelope_of_silence_is_flat() -> None:
    assert synchrony.sound_envelope(np.zeros(RATE, np.float32), RATE, 16, 16).std() == 0


def test_the_opening_that_a_sound_implies_follows_what_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = (TimedPhoneme("pause", 0, 0.5), TimedPhoneme("ɑː", 0.5, 1.0), TimedPhoneme("m", 1.0, 1.5))
    monkeypatch.setattr(Recogniser, "hear_timed", lambda self, samples: timed)
    wanted = synchrony.heard_opening(np.zeros(36_000, np.float32), 24, 16, object.__new__(Recogniser))
    assert wanted[:6].max() < 0.1 and wanted[10:14].min() > 0.8 and wanted[19:].max() < 0.1


@pytest.mark.parametrize("rate", [24_000, 44_100, 48_000])
def test_a_full_sine_has_the_loudness_that_the_standard_says(rate: int) -> None:
    """BS.1770: 0 dBFS at 997 Hz in one channel is -3.01 LUFS; in two, 3 dB more."""
    sine = np.sin(2 * np.pi * 997 * np.arange(5 * rate) / rate)
    assert loudness.integrated_loudness(sine, rate) == pytest.approx(-3.01, abs=0.05)
    assert loudness.integrated_loudness(np.stack([sine, sine], 1), rate) == pytest.approx(0.0, abs=0.05)
    assert loudness.integrated_loudness(sine / 10, rate) == pytest.approx(-23.01, abs=0.05)


def test_loudness_agrees_with_another_meter(tmp_path: Path) -> None:
    """ffmpeg's ebur128, on loud and soft noise with a pause, which the gates must leave out."""
    rng = np.random.default_rng(1)
    parts = [0.2 * rng.standard_normal(96_000), np.zeros(96_000), 0.02 * rng.standard_normal(96_000)]
    samples = np.clip(np.concatenate(parts), -1, 1)
    soundfile.write(tmp_path / "a.wav", samples, 48_000, subtype="FLOAT")
    command = [ffmpeg.find_ffmpeg(), "-nostats", "-i", str(tmp_path / "a.wav"), "-filter:a", "ebur128"]
    told = subprocess.run([*command, "-f", "null", "-"], capture_output=True, text=True, check=True).stderr
    theirs = float(told.split("Integrated loudness:")[1].split("I:")[1].split()[0])
    assert loudness.integrated_loudness(samples, 48_000) == pytest.approx(theirs, abs=0.11)  # told in tenths


def test_silence_and_nothing_have_no_loudness() -> None:
    assert loudness.integrated_loudness(np.zeros(RATE), RATE) == -70.0
    assert loudness.integrated_loudness(np.zeros(0), RATE) == -70.0
    assert loudness.peak_dbfs(np.zeros(10)) == -120.0 and loudness.clipped_share(np.zeros(0)) == 0.0


def test_a_clipped_sound_is_told_from_a_loud_one() -> None:
    sine = np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)
    assert loudness.clipped_share(0.98 * sine) == 0.0
    clipped = np.clip(1.5 * sine, -1, 1)
    share = 1 - 2 * np.arcsin(0.99 / 1.5) / np.pi  # of a sine that stands above 0.99 / 1.5
    assert loudness.clipped_share(clipped) == pytest.approx(share, abs=0.01)
    assert loudness.peak_dbfs(clipped) == pytest.approx(0.0)
    alone = np.zeros(100)
    alone[[10, 20]] = 1.0  # a peak is no clipping
    assert loudness.clipped_share(alone) == 0.0


def _walk(num_frames: int, seed: int) -> np.ndarray:
    """A soft picture that moves a pixel a frame."""
    noise = np.random.default_rng(seed).integers(0, 255, (64, 64 + num_frames, 3)).astype(np.uint8)
    wide = cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 4)
    wide = np.clip(128 + 6 * (wide - wide.mean()), 0, 255).astype(np.uint8)
    return np.stack([wide[:, i : i + 64] for i in range(num_frames)])


def test_a_seam_in_the_picture_is_a_jump_against_its_own_steps() -> None:
    frames = _walk(30, 0)
    assert seam.picture_seam(frames[:15], frames[15:]) == pytest.approx(1, abs=0.25)
    assert seam.picture_seam(frames[:15], frames[19:]) > 2.5  # four frames are missing
    assert seam.picture_seam(frames[:15], _walk(30, 1)) > 4
    with pytest.raises(ValueError, match="1 given"):
        seam.picture_seam(frames[:1], frames[1:])


def test_a_seam_in_the_sound_is_a_jump_against_its_own_steps() -> None:
    rng = np.random.default_rng(2)
    tone = np.sin(2 * np.pi * 220 * np.arange(2 * RATE) / RATE) * 0.3
    tone = (tone + 0.01 * rng.standard_normal(len(tone))).astype(np.float32)
    assert seam.sound_seam(tone[:RATE], tone[RATE:]) < 1.5
    assert seam.sound_seam(tone[:RATE], tone[RATE + 55 :]) > 2  # half a wave is missing: a click
    assert seam.sound_seam(tone[:RATE], 0.1 * rng.standard_normal(RATE).astype(np.float32)) > 3
    with pytest.raises(ValueError, match="100 given"):
        seam.sound_seam(tone[:100], tone)


def test_motion_is_how_far_pixels_go() -> None:
    frames = _walk(12, 3)
    assert motion.motion(frames) == pytest.approx(100 / 64, rel=0.2)  # a pixel of 64 a frame
    assert motion.motion(frames[[0, 0, 0]]) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="1 frames"):
        motion.motion(frames[:1])


def test_flicker_is_up_and_down_not_a_fade() -> None:
    grey = np.full((20, 32, 32, 3), 100.0)
    fade = grey + 3 * np.arange(20)[:, None, None, None]
    up_and_down = grey + 3 * (np.arange(20) % 2)[:, None, None, None]
    assert motion.flicker(fade.astype(np.uint8)) == pytest.approx(0, abs=1e-3)
    assert motion.flicker(up_and_down.astype(np.uint8)) == pytest.approx(6, abs=1e-3)


def test_the_contrast_of_a_mouth_follows_its_opening() -> None:
    rng = np.random.default_rng(4)
    curve = np.abs(np.sin(np.arange(24) / 2))
    found = []
    for _ in range(4):
        mouth_track = np.zeros((24, len(MOUTH_PARAMETERS)))
        mouth_track[:, 0] = curve
        drawn = render(sample_identity(rng), "neutral", mouth_track, sample_motion(rng, 24, 16, "neutral"))
        contrast = mouth.mouth_contrast(drawn.frames)
        assert contrast is not None
        found.append(synchrony.correlation(contrast, drawn.opening))
    assert np.mean(found) > 0.6
    assert mouth.mouth_contrast(np.zeros((5, 64, 64, 3), np.uint8)) is None


def test_psnr_of_the_whole_and_of_the_mouth() -> None:
    truth = np.full((2, 16, 16, 3), 100, np.uint8)
    made = truth.copy()
    assert pictures.psnr(made, truth) == 99.0
    made[:, 4:8, 4:8] += 10
    boxes = np.tile(np.array([4.0, 4.0, 8.0, 8.0]), (2, 1))
    assert pictures.mouth_psnr(made, truth, boxes) == pytest.approx(20 * np.log10(25.5), abs=1e-3)
    assert pictures.psnr(made, truth) == pytest.approx(20 * np.log10(25.5) + 10 * np.log10(16), abs=1e-3)
    assert pictures.mouth_psnr(made, truth, boxes + 8) == 99.0


def test_likeness_of_structure() -> None:
    one, other = _walk(1, 5)[0], _walk(1, 6)[0]
    assert pictures.ssim(one, one) == pytest.approx(1)
    assert 0.8 < pictures.ssim(one, cv2.GaussianBlur(one, (0, 0), 1.0)) < 1
    assert pictures.ssim(one, other) < 0.5


def test_attributes_are_counted_among_those_asked_for() -> None:
    seen = {"hair_colour": "red", "glasses": "none"}
    assert attributes_right(seen, {"hair_colour": "red", "glasses": "yes", "beard": "full"}) == (1, 2)
    assert attributes_right(seen, {"beard": "full"}) == (0, 0)


def test_words_are_compared_without_case_and_points() -> None:
    assert speech.words("Don't STOP, it's fun!") == ["don't", "stop", "it's", "fun"]
    assert speech.error_rate([speech.words("it is fun")], [speech.words("It's fun.")]) == 1.0


# ---- SyncNet ---------------------------------------------------------------------------------------------


def test_syncnet_has_the_published_layers() -> None:
    """Names and shapes of syncnet_v2.model, of which a few pin the rest."""
    state = syncnet.SyncNet().state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["netcnnaud.0.weight"] == (64, 1, 3, 3)
    assert shapes["netcnnaud.18.weight"] == (512, 256, 5, 4)
    assert shapes["netcnnlip.0.weight"] == (96, 3, 5, 7, 7)
    assert shapes["netcnnlip.18.weight"] == (512, 256, 1, 6, 6)
    assert shapes["netfcaud.3.weight"] == shapes["netfclip.3.weight"] == (1024, 512)
    with torch.inference_mode():
        lips, sound = syncnet.SyncNet().eval()(torch.zeros(1, 3, 5, 224, 224), torch.zeros(1, 1, 13, 20))
    assert lips.shape == sound.shape == (1, 1024)


def test_lip_sync_errors_know_the_shift_that_fits() -> None:
    rng = torch.Generator().manual_seed(0)
    lips = torch.randn(60, 32, generator=rng)
    confidence, distance = syncnet.scores(lips, lips)
    assert distance == pytest.approx(0, abs=1e-3) and confidence > 4
    late_confidence, late = syncnet.scores(lips, torch.roll(lips, 3, 0))
    assert late < 1.5 and late_confidence > 3  # the ends don't overlap
    none_confidence, none = syncnet.scores(lips, torch.randn(60, 32, generator=rng))
    assert none > 5 and none_confidence < 2


def test_cepstra_have_the_customary_values() -> None:
    """Energy first; a tone's spectrum peaks where its filter lies; 100 frames a second."""
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    cepstra = syncnet.mfcc(tone)
    assert cepstra.shape == (13, 99)
    emphasis = abs(1 - 0.97 * np.exp(-2j * np.pi * 440 / 16_000)) * 32768
    # Parseval: the power spectrum's sum over half the bins is half the frame's energy, over 512
    assert cepstra[0, 50] == pytest.approx(np.log(emphasis**2 / 2 * 400 / 2), abs=0.05)
    louder = syncnet.mfcc(0.1 * tone)
    np.testing.assert_allclose(cepstra[1:] - louder[1:], 0, atol=1e-3)  # shape, not loudness


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    from uniavgen_cli.errors import WeightsError

    torch.save({"a": torch.zeros(1)}, tmp_path / "syncnet_v2.model")
    with pytest.raises(WeightsError, match="SyncNet"):
        syncnet.load(tmp_path / "syncnet_v2.model")


# ---- the suite's figures ---------------------------------------------------------------------------------


def _figure(rows: dict[str, list[dict[str, float]]], name: str) -> dict[str, object]:
    return next(figure for figure in figures.summary(rows) if figure["name"] == name)


def test_a_figure_stands_beside_truth_and_control() -> None:
    rows = [
        {"opening": 0.9, "opening_other": 0.05, "opening_alone": 0.1, "true_opening": 0.98},
        {"opening": 0.84, "opening_other": 0.09, "opening_alone": 0.2, "true_opening": 0.96},
    ]
    found = _figure({"animate": rows}, "opening with the truth")
    assert found["value"] == pytest.approx(0.87) and found["met"] is True and found["clips"] == 2
    assert found["error"] == pytest.approx(0.03 / np.sqrt(2)) and found["truth"] == pytest.approx(0.97)
    rows[0]["opening_other"] = 0.3  # a control that does not fail takes the figure down with it
    assert _figure({"animate": rows}, "opening with the truth")["met"] is False
    text = figures.table(figures.summary({"animate": rows}))
    assert any("another sentence 0.195 (< 0.1)" in cell for line in text for cell in line)


def test_errors_are_weighed_by_length_and_held_over_the_floor() -> None:
    rows = [
        {"errors": 5, "phonemes": 10, "true_errors": 1, "true_phonemes": 10, "errors_other": 19,
         "other_phonemes": 20},
        {"errors": 5, "phonemes": 40, "true_errors": 0, "true_phonemes": 40, "errors_other": 20,
         "other_phonemes": 20},
    ]  # fmt: skip
    found = _figure({"generate": rows}, "phoneme errors")
    assert found["value"] == pytest.approx(0.2) and found["truth"] == pytest.approx(0.02)
    assert found["bar"] == pytest.approx(0.17) and found["met"] is False
    rows[0]["errors"] = 3
    assert _figure({"generate": rows}, "phoneme errors")["met"] is True


def test_a_share_of_the_truths_score_is_the_bar() -> None:
    rows = [{"emotion_seen": float(i < 6), "true_emotion_seen": float(i < 7), "emotion_seen_other": 0.0}
            for i in range(10)]  # fmt: skip
    found = _figure({"generate": rows}, "emotion seen as asked")
    assert found["bar"] == pytest.approx(0.56) and found["met"] is True
    assert len(EMOTIONS) == 7  # chance, as the bar's table says it


def test_the_median_lag_must_be_none() -> None:
    def lag(values: list[int]) -> object:
        return _figure({"animate": [{"lag": value} for value in values]}, "its best lag")["met"]

    assert lag([0, 0, 3]) is True and lag([-1, -1, 0]) is False


def test_rows_without_a_figure_count_nothing() -> None:
    rows = [{"named_right": 1, "named": 2, "skin_right": 1.0}, {"named_right": 0, "named": 0}]
    assert _figure({"generate": rows}, "- skin")["clips"] == 1
    assert _figure({"generate": rows}, "looks as asked")["value"] == 0.5
    assert figures.summary({}) == []


def test_whisper_is_read_from_a_folder_and_heard_out(tmp_path: Path) -> None:
    """The real classes at the smallest size, untrained: what it hears is counted against the words."""
    transformers = pytest.importorskip("transformers")
    names = [*(chr(c) for c in range(33, 127)), "Ġ", "<|endoftext|>", "<|startoftranscript|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    files = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    tokenizer = transformers.WhisperTokenizer(*files, unk_token="<|endoftext|>")
    end, start = vocabulary["<|endoftext|>"], vocabulary["<|startoftranscript|>"]
    layer = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, max_target_positions=20, num_mel_bins=80,
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, bos_token_id=end,
        suppress_tokens=None, begin_suppress_tokens=None,
        **{f"{half}_{key}": value for half in ("encoder", "decoder") for key, value in layer.items()},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 8
    model.save_pretrained(tmp_path)
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(tmp_path)
    sound = 0.1 * np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    heard = speech.transcript(sound, tmp_path)
    assert heard and speech.word_error_rate(sound, heard, tmp_path) == 0.0
    assert speech.word_error_rate(sound, "something else", tmp_path) >= 1.0
