"""Faces are found where they are drawn, none where there is none, and become shares of the latent cells."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from uniavgen_cli.data.avatar import EMOTIONS, render, sample_identity, sample_motion
from uniavgen_cli.errors import InputError, UsageError
from uniavgen_cli.media import drawn_faces, face
from uniavgen_cli.media.face import Face, choose_face, describe_detectors, detect_faces, face_mask, overlap
from uniavgen_cli.training.face_stage import FaceDetector, batch, draw_pool, export, face_stage, loss

UNSEEN = 1_000_000  # seeds of people whom no training drew
SIZES = ((128, 128), (256, 256), (128, 224), (288, 160), (384, 384))


def unseen_avatar(number: int, height: int, width: int) -> tuple[np.ndarray, tuple[float, ...]]:
    rng = np.random.default_rng(UNSEEN + number)
    emotion = EMOTIONS[number % len(EMOTIONS)]
    motion = sample_motion(rng, 1, 1.0, emotion)
    drawn = render(sample_identity(rng), emotion, rng.random((1, 7)) ** 2, motion, height=height, width=width)
    return drawn.frames[0], tuple(drawn.face_boxes[0])


def loaded(path: Path) -> FaceDetector:
    """The network as it learns, with the weights of a file."""
    detector = FaceDetector()
    detector.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return detector.eval()


# ---- masks and choices -----------------------------------------------------------


def test_a_mask_is_the_share_of_each_cell() -> None:
    mask = face_mask((16, 8, 40, 32), height=64, width=64, rows=4, columns=4)
    assert mask.dtype == np.float32
    expected = [[0, 0.5, 0.25, 0], [0, 1, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert mask.tolist() == expected


def test_a_mask_of_an_oblong_picture_covers_the_whole_box() -> None:
    mask = face_mask((10.5, 3.25, 77.0, 50.0), height=96, width=160, rows=6, columns=10)
    assert mask.shape == (6, 10)
    assert mask.sum() * 16 * 16 == pytest.approx(66.5 * 46.75, rel=1e-6)
    assert face_mask((0, 0, 160, 96), 96, 160, 3, 5).min() == 1
    assert face_mask((-50, -50, 500, 500), 96, 160, 3, 5).max() == 1


def test_faces_are_counted_from_the_largest() -> None:
    faces = [Face(box=(0, 0, 30, 40), score=0.7), Face(box=(50, 0, 60, 10), score=0.9)]
    assert choose_face(faces, 1).score == 0.9
    with pytest.raises(InputError, match="no face number 2: 2 faces found; --face-index takes 0 to 1"):
        choose_face(faces, 2)
    with pytest.raises(InputError, match="no face number 0: 0 faces found"):
        choose_face([], 0)


def test_overlap_of_boxes() -> None:
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (20, 20, 30, 30)) == 0


# ---- detectors -----------------------------------------------------------


def test_unseen_avatars_are_found_at_every_size() -> None:
    found = precise = faces_seen = 0
    overlaps = []
    for number in range(20):
        frame, truth = unseen_avatar(number, *SIZES[number % len(SIZES)])
        faces = detect_faces(frame, "built-in")
        fits = [overlap(seen.box, truth) for seen in faces]  # type: ignore[arg-type]
        found += max(fits, default=0) > 0.5
        precise += sum(fit > 0.5 for fit in fits)
        faces_seen += len(faces)
        overlaps.append(max(fits, default=0))
    assert found >= 19 and precise / faces_seen >= 0.95
    assert np.mean(overlaps) > 0.75


def test_two_people_are_two_faces_the_nearer_first() -> None:
    near, near_box = unseen_avatar(3, 192, 192)
    far, _ = unseen_avatar(5, 128, 128)
    picture = np.concatenate([cv2.copyMakeBorder(far, 64, 0, 0, 0, cv2.BORDER_REPLICATE), near], axis=1)
    faces = detect_faces(picture)
    assert len(faces) == 2 and faces[0].area > faces[1].area
    x0, y0, x1, y1 = near_box
    assert overlap(faces[0].box, (x0 + 128, y0, x1 + 128, y1)) > 0.6


def test_a_picture_of_no_one_has_no_face() -> None:
    rng = np.random.default_rng(0)
    clouds = cv2.resize(
        rng.integers(0, 255, (6, 9, 3), dtype=np.uint8), (192, 128), interpolation=cv2.INTER_CUBIC
    )
    for picture in (
        np.full((128, 128, 3), 90, np.uint8),
        clouds,
        rng.integers(0, 255, (96, 96, 3), dtype=np.uint8),
    ):
        assert detect_faces(picture, "built-in") == []


def test_boxes_stay_inside_the_picture() -> None:
    frame, (x0, y0, x1, y1) = unseen_avatar(2, 256, 256)
    close = np.ascontiguousarray(frame[int(y0 + 10) : int(y1), int(x0 + 5) : int(x1)])
    height, width, _ = close.shape
    for seen in detect_faces(close):
        assert 0 <= seen.box[0] < seen.box[2] <= width and 0 <= seen.box[1] < seen.box[3] <= height


def test_the_cascade_finds_most_faces_where_they_are() -> None:
    hits = []
    for number in range(8):
        frame, truth = unseen_avatar(number, 192, 192)
        faces = detect_faces(frame, "cascade")
        hits.append(max((overlap(seen.box, truth) for seen in faces), default=0))  # type: ignore[arg-type]
    assert sum(hit > 0.5 for hit in hits) >= 5


def test_without_its_weights_only_the_cascade_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("uniavgen_cli.config.shipped_weights_dir", lambda: tmp_path / "shipped")
    monkeypatch.setenv("UNIAVGEN_WEIGHTS", str(tmp_path))
    frame, _ = unseen_avatar(0, 128, 128)
    assert detect_faces(frame, "drawn") == []
    assert detect_faces(frame, "built-in") == detect_faces(frame, "cascade")
    assert "not used: no file" in describe_detectors()["drawn faces"]


def test_an_unknown_detector_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no face detector 'yolo'; there are auto, insightface"):
        detect_faces(np.zeros((32, 32, 3), np.uint8), "yolo")


INSIGHTFACE = """
class FaceAnalysis:
    def __init__(self, name, allowed_modules, providers):
        assert allowed_modules == ["detection"] and providers == ["CPUExecutionProvider"]
        self.name = name
    def prepare(self, ctx_id, det_size):
        assert ctx_id == -1
    def get(self, picture):
        import types
        assert picture[0, 0].tolist() == [3, 2, 1]  # BGR
        return [types.SimpleNamespace(bbox=[-4.0, 2.0, 20.0, 30.0], det_score=0.8)]
"""


def test_insightface_is_used_when_its_pack_is_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(face, "PACKS", tmp_path / "models")
    assert face.find_pack() is None and describe_detectors()["insightface"].startswith("not used")
    for name, text in (
        ("insightface/__init__.py", ""),
        ("insightface/app.py", INSIGHTFACE),
        ("onnxruntime.py", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert face.find_pack() is None  # the library alone would download a pack: it isn't asked
    with pytest.raises(UsageError, match="no pack on disk"):
        detect_faces(np.zeros((32, 32, 3), np.uint8), "insightface")
    pack = tmp_path / "models" / "buffalo_l"
    pack.mkdir(parents=True)
    (pack / "det_10g.onnx").touch()
    frame = np.tile(np.array([1, 2, 3], np.uint8), (32, 32, 1))
    assert detect_faces(frame) == [Face(box=(0.0, 2.0, 20.0, 30.0), score=0.8)]
    assert str(pack) in describe_detectors()["insightface"]


# ---- training -----------------------------------------------------------


def test_a_batch_is_drawn_from_the_step_alone() -> None:
    pool = draw_pool(4, seed=5)
    one, two = (batch(pool, np.random.default_rng((0, 7)), 6) for _ in range(2))
    other = batch(pool, np.random.default_rng((0, 8)), 6)
    assert torch.equal(one["frames"], two["frames"]) and torch.equal(one["boxes"], two["boxes"])
    assert not torch.equal(one["frames"], other["frames"])
    assert one["frames"].shape == (6, 3, 160, 160) and one["frames"].abs().max() <= 1
    there = one["boxes"][one["boxes"][..., 2] > 0]
    assert len(there) and (there[:, 2:] - there[:, :2]).min() > 10
    assert there.min() > -1 and there.max() < 161


def test_a_loss_falls_with_the_truth_and_is_a_value_a_sample() -> None:
    pool = draw_pool(4, seed=5)
    drawn = batch(pool, np.random.default_rng(3), 5)
    untrained = loss(FaceDetector(), drawn, 0)
    trained = loss(loaded(face._drawn_weights()), drawn, 0)
    for name in ("where", "box"):
        assert untrained[name].shape == (5,)
        assert trained[name].mean() < 0.5 * untrained[name].mean()


def test_what_was_learnt_is_computed_alike_without_torch() -> None:
    frame = draw_pool(1, seed=5)[0][0][:128, :112]
    path = face._drawn_weights()
    with torch.inference_mode():
        logits, boxes = loaded(path)(torch.from_numpy(frame).permute(2, 0, 1)[None] / 127.5 - 1)
    scores, found = drawn_faces.look(drawn_faces.load(path), frame)
    assert scores.shape == (16, 14) and scores.max() > 0.5
    np.testing.assert_allclose(scores, logits[0].sigmoid(), atol=1e-4)
    np.testing.assert_allclose(found, boxes[0], rtol=1e-3, atol=1e-2)


def test_a_step_of_training_changes_every_weight(tmp_path: Path) -> None:
    stage = face_stage(people=2, batch_size=2, steps=1)
    total = sum(value.mean() for value in stage.loss(stage.module, stage.batch(0), 0).values())
    total.backward()
    assert all(
        weight.grad is not None and weight.grad.abs().sum() > 0 for weight in stage.module.parameters()
    )
    export(stage.module.state_dict(), tmp_path / "face_detector.safetensors")
    again = loaded(tmp_path / "face_detector.safetensors")
    frames = stage.batch(1)["frames"]
    assert torch.allclose(again(frames)[0], stage.module(frames)[0], atol=0.02)
    assert (tmp_path / "face_detector.safetensors").stat().st_size < 300 * 1024
