"""Presets: what is derived, overridden and refused, and in which order things are believed."""

from pathlib import Path

import pytest

from uniavgen_cli import config
from uniavgen_cli.commands import _options
from uniavgen_cli.errors import UsageError, WeightsError


def preset_file(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_preset_file_derives_and_never_copies(tmp_path: Path) -> None:
    path = preset_file(
        tmp_path, "extends: nano\nabout: mine\nsampling: {steps: 7}\nclip: {short_side: 256}\n"
    )
    nano, mine = config.load_preset("nano"), config.load_preset(path)
    assert (mine.name, mine.about, mine.extends) == ("mine", "mine", "nano")
    assert (mine.sampling.steps, mine.sampling.shift) == (7, nano.sampling.shift)
    assert mine.clip.short_side == 256
    assert mine.model == nano.model and mine.weights == "nano"


def test_a_file_extends_a_file_beside_it(tmp_path: Path) -> None:
    preset_file(tmp_path, "extends: nano\nabout: first\nsampling: {steps: 3}\n", "first.yaml")
    second = preset_file(
        tmp_path, "extends: first.yaml\nabout: second\nsampling: {shift: 2.0}\n", "second.yaml"
    )
    assert config.load_preset(second).sampling.steps == 3


def test_a_preset_that_extends_itself_is_refused(tmp_path: Path) -> None:
    preset_file(tmp_path, "extends: b.yaml\nabout: a\n", "a.yaml")
    path = preset_file(tmp_path, "extends: a.yaml\nabout: b\n", "b.yaml")
    with pytest.raises(UsageError, match="extends itself"):
        config.load_preset(path)


def test_flag_beats_environment_beats_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load_preset("nano").runtime.attention == "auto"
    monkeypatch.setenv("UNIAVGEN_ATTENTION", "sdpa")
    assert config.load_preset("nano").runtime.attention == "sdpa"
    assert config.load_preset("nano", ["runtime.attention=xformers"]).runtime.attention == "xformers"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("sampling.steps=10", "steps", 10),
        ("sampling.video_guidance=2", "video_guidance", 2.0),
        ("sampling.shift=1e1", "shift", 10.0),
        ("sampling.skip_block=null", "skip_block", None),
    ],
)
def test_set_takes_yaml_values(override: str, key: str, value: object) -> None:
    set_to = getattr(config.load_preset("nano", [override]).sampling, key)
    assert set_to == value and type(set_to) is type(value)


def test_set_reaches_the_plain_sections_and_keeps_their_types() -> None:
    model = config.load_preset("nano", ["model.num_blocks=2", "model.interaction_blocks=[0]"]).model
    assert (model["num_blocks"], model["interaction_blocks"]) == (2, [0])
    with pytest.raises(UsageError, match="int expected"):
        config.load_preset("nano", ["model.num_blocks=two"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampling.step=3", "did you mean sampling.steps"),
        ("steps=3", "did you mean sampling.steps"),
        ("model.video_dims=3", "did you mean model.video_dim"),
        ("sampling=3", "unknown key 'sampling'"),
        ("sampling.steps", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("sampling.steps=many", "sampling.steps"),
        ("sampling.steps=0", "sampling.steps"),
        ("sampling.steps=2.5", "sampling.steps"),
        ("sampling.steps=true", "sampling.steps"),
        ("sampling.shift=[1", "can't be read as YAML"),
        ("clip.short_side=100", "not a multiple of 32"),
        ("clip.max_frames=80", "not 1 \\+ 4k"),
        ("runtime.attention=fast", "runtime.attention"),
        ("runtime.device=gpu", "runtime.device"),
    ],
)
def test_a_wrong_override_is_one_usage_error(override: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        config.load_preset("nano", [override])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: nano\nabout: x\nsamplin: {steps: 3}\n", "samplin: Extra inputs"),
        ("extends: nano\nabout: x\nsampling: {stepz: 3}\n", "sampling.stepz: Extra inputs"),
        ("extends: nano\n", "about: Field required"),
        ("extends: nan\nabout: x\n", "unknown preset 'nan'; did you mean nano"),
        ("- a list\n", "holds no mapping"),
        ("a: [\n", "can't be read"),
        ("\xff", "holds no mapping"),
    ],
)
def test_a_wrong_preset_file_is_one_usage_error(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        config.load_preset(preset_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean uniavgen"):
        config.load_preset("uniavgn")
    with pytest.raises(UsageError, match="does not exist"):
        config.load_preset("missing/preset.yaml")


def test_weights_are_the_users_own_or_those_that_came_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nano = config.load_preset("nano")
    monkeypatch.setenv("UNIAVGEN_WEIGHTS", str(tmp_path))
    shipped = config.shipped_weights_dir() / "nano"
    assert config.weights_folder(nano) == shipped  # what the user has nothing of is not hidden
    folder = tmp_path / "nano"
    folder.mkdir()
    assert config.weights_folder(nano) == shipped
    (folder / "joint.safetensors").write_bytes(b"")
    assert config.weights_folder(nano) == folder
    detector = "nano/face_detector.safetensors"
    assert config.find_weights(detector) == config.shipped_weights_dir() / detector
    assert config.find_weights("uniavgen") == tmp_path / "uniavgen"  # where it would be
    with pytest.raises(WeightsError, match=f"looked in {tmp_path}/uniavgen") as caught:
        config.weights_folder(config.load_preset("uniavgen"))
    assert caught.value.exit_code == 5


def test_by_default_weights_are_pulled_to_a_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNIAVGEN_WEIGHTS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert config.weights_dir() == tmp_path / ".local" / "share" / "uniavgen" / "weights"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert config.weights_dir() == tmp_path / "data" / "uniavgen" / "weights"
    assert config.weights_folder(config.load_preset("nano")) == config.shipped_weights_dir() / "nano"


def test_changed_keys_are_the_ones_that_were_set() -> None:
    assert config.changed_keys(config.load_preset("nano")) == {}
    changed = config.load_preset("nano", ["sampling.steps=4", "model.num_blocks=2"])
    assert config.changed_keys(changed) == {"sampling.steps": 4, "model.num_blocks": 2}


def test_the_default_preset_is_written_twice_and_the_same() -> None:
    assert _options.DEFAULT_PRESET == config.DEFAULT_PRESET
