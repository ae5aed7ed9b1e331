"""Low-rank adapters on the joint model: what learns when the model's own weights stay. By peft."""

import logging
from pathlib import Path

from torch import Tensor, nn

from uniavgen_cli.errors import UsageError
from uniavgen_cli.models.lora import save_lora
from uniavgen_cli.models.uniavgen import UniAVGen

PARTS = ("blocks", "audio_blocks", "a2v_blocks", "v2a_blocks")  # whose linear layers have adapters
LEFT_OUT = "mask_head"  # it says where the face is, which its own box has taught it
FILE = "lora.safetensors"


def target_layers(model: nn.Module) -> list[str]:
    """The names of the layers that get adapters: attention and feed-forward of both branches, interaction."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] in PARTS and LEFT_OUT not in name
    ]


def add_adapters(model: UniAVGen, rank: int, alpha: float) -> None:
    """Freeze the model and give its layers adapters of a rank, in float32, which change nothing at first.

    Raises UsageError when peft is not installed.
    """
    for name in ("torchao", "torch.utils._pytree"):  # which tell of kernels that are not needed here
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except (ImportError, OSError, RuntimeError) as error:  # OSError: beside a torchaudio of another torch
        raise UsageError(
            f"adapters are trained with peft, which can't be loaded ({error})",
            "pip install 'uniavgen[train]'",
        ) from error
    model.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type] # a fraction is as good
        lora_dropout=0.0,
        target_modules=target_layers(model),
    )
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # however few bits the frozen weights have
            parameter.requires_grad_(True)


def adapters_of(weights: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each layer, from the trained tensors by peft's names within a model."""
    layers = {name.partition(".lora_A.")[0] for name in weights if ".lora_A." in name}
    return {
        layer: (weights[f"{layer}.lora_A.default.weight"], weights[f"{layer}.lora_B.default.weight"])
        for layer in sorted(layers)
    }


def export(weights: dict[str, Tensor], folder: Path, *, alpha: float) -> None:
    """Save the averaged adapters as `--lora` reads them."""
    save_lora(adapters_of(weights), folder / FILE, alpha)
