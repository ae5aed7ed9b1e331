"""The released vocoder: the BigVGAN of Qwen2.5-Omni, computed by transformers.

Source: BigVGAN (arXiv 2206.04658), `Qwen2_5OmniToken2WavBigVGANModel` of transformers. Axis letters: b batch,
t mel tokens.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from uniavgen_cli.codecs.mel import HOP, NUM_BINS, denormalize
from uniavgen_cli.errors import WeightsError
from uniavgen_cli.models.state_dict import load_weights, read_config, weights_in

if TYPE_CHECKING:
    from transformers import Qwen2_5OmniToken2WavBigVGANModel


class BigVGANVocoder(nn.Module):
    """Normalised mels (b, t, 80) to 24 kHz sound (b, t*240), in float32."""

    def __init__(self, model: "Qwen2_5OmniToken2WavBigVGANModel") -> None:
        super().__init__()
        self.model = model

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> "BigVGANVocoder":
        """The vocoder in a folder of transformers, with its `config.json`; raises WeightsError."""
        from transformers import Qwen2_5OmniToken2WavBigVGANModel
        from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig

        values = read_config(folder)
        try:
            config = Qwen2_5OmniBigVGANConfig(**values)
            with torch.random.fork_rng(devices=[]):  # it draws first weights, which are all replaced
                # not on the meta device: its filters are no weights
                model = Qwen2_5OmniToken2WavBigVGANModel(config)
        except Exception as error:  # the library raises all sorts
            raise WeightsError(
                f"{folder} has sizes no such vocoder can have ({error})", "fetch it again"
            ) from error
        hop = math.prod(config.upsample_rates)
        if (config.mel_dim, hop) != (NUM_BINS, HOP):
            raise WeightsError(
                f"{folder} makes {hop} samples of {config.mel_dim} mel bins, not {HOP} of {NUM_BINS}",
                "it is another model's vocoder",
            )
        load_weights(model, weights_in(folder), float32_parts=())
        return cls(model.eval()).to(device)

    @torch.inference_mode()
    def decode(self, mels: Tensor) -> Tensor:
        """Sound (b, t*240) in [-1, 1], float32, on the CPU, of normalised mels (b, t, 80)."""
        log_mels = denormalize(mels.float()).transpose(1, 2)  # (b, 80, t), natural logarithms
        with torch.autocast(mels.device.type, enabled=False):
            sound = self.model(log_mels)
        return sound.reshape(len(mels), -1)  # a batch of one comes without its axis
