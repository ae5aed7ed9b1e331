"""Every built-in preset loads, says what it is for, and fits the classes it configures."""

import pytest

from uniavgen_cli.config import load_preset, preset_names, presets_dir, weights_folder
from uniavgen_cli.errors import WeightsError

NAMES = preset_names()


def test_the_built_in_presets_are_there() -> None:
    assert {"nano", "nano-vae", "nano-vocoder", "nano-joint", "nano-face", "uniavgen"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_opens_with_what_it_is_for(name: str) -> None:
    text = (presets_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    preset = load_preset(name)
    assert preset.name == name
    assert 20 < len(preset.about) < 130


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_fits_the_classes_it_configures(name: str) -> None:
    from uniavgen_cli.codecs.caption import CaptionConfig
    from uniavgen_cli.codecs.video_vae import VideoVAEConfig
    from uniavgen_cli.codecs.vocoder import VocoderConfig
    from uniavgen_cli.models.uniavgen import UniAVGenConfig

    preset = load_preset(name)
    model = UniAVGenConfig(**preset.model)
    assert model.video_latent_channels == preset.video_vae["latent_channels"]
    assert (model.caption_tokens, model.caption_dim) == (preset.caption["tokens"], preset.caption["dim"])
    assert max(model.interaction_blocks) < model.num_blocks
    assert preset.sampling.skip_block is None or preset.sampling.skip_block < model.num_blocks
    if preset.weights == "nano":  # the released checkpoint's codecs are configured by its own files
        assert VideoVAEConfig(**preset.video_vae).latent_channels == 384
        assert CaptionConfig(**preset.caption).dim == 128
        assert VocoderConfig(**preset.vocoder).num_blocks > 0


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("nano-")])
def test_a_training_preset_derives_from_nano_and_only_adds_its_recipe(name: str) -> None:
    nano, preset = load_preset("nano"), load_preset(name)
    assert preset.extends in NAMES and preset.extends.startswith("nano")
    assert preset.train is not None and preset.train["part"]
    assert preset.train.get("steps") or name == "nano-vae"  # which is fitted
    same = {"name", "about", "extends", "train"}
    assert preset.model_dump(exclude=same) == nano.model_dump(exclude=same)


def test_what_derives_from_the_released_preset_differs_in_memory_or_sampling_alone() -> None:
    released = load_preset("uniavgen").model_dump()
    for name in (name for name in NAMES if name.startswith("uniavgen-")):
        values = load_preset(name).model_dump()
        assert values["extends"] == "uniavgen"
        changed = {key for key in values if values[key] != released[key]} - {"name", "about", "extends"}
        assert changed <= {"clip", "sampling", "runtime", "train"}, name
    draft = load_preset("uniavgen-draft")
    assert draft.sampling.steps < load_preset("uniavgen").sampling.steps and draft.sampling.guidance_to < 1


def test_the_released_weights_are_not_installed() -> None:
    with pytest.raises(WeightsError, match="use --preset nano"):
        weights_folder(load_preset("uniavgen"))
