"""The released caption encoder, umT5-xxl, computed by transformers: in memory only while captions are read.

It is read from the original `models_t5_umt5-xxl-enc-bf16.pth`, whose keys and sizes are mapped here, or from
a folder as transformers writes it. Source: umT5 (arXiv 2304.09151), text cleaning of Wan2.2. Axis letters:
b batch, t caption tokens, d width.
"""

import gc
import html
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from uniavgen_cli.errors import WeightsError
from uniavgen_cli.models.state_dict import (
    Shape,
    check_weights,
    load_weights,
    read_config,
    read_shapes,
    weights_in,
)

if TYPE_CHECKING:
    from transformers import UMT5Config, UMT5EncoderModel

END = 1  # the token after every text
REMEMBERED = 64  # captions whose states are kept, so that several takes read them once


class UMT5Captions:
    """Captions to states (b, tokens, d), float32 on the CPU, zero after each caption's last token.

    `encode` loads the encoder, 11 GB at full size, and frees it again; it stays inside
    `with captions.resident():`, and after `keep`.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: Path,
        *,
        tokens: int,
        dim: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        load: Callable[..., None] = load_weights,
    ) -> None:
        """The encoder in the original .pth at `path` or in a folder of transformers, and a tokenizer folder.

        `load` fills it, called as `load_weights` is. Nothing is loaded yet, but all is looked at: raises
        WeightsError for files that don't fit.
        """
        self.tokens = tokens
        self._device, self._dtype, self._load = device, dtype, load
        self._weights, config, self._file_key = open_encoder(path)
        self._config = config
        check_weights(self._empty(), self._weights, self._file_key)
        if config.d_model != dim:
            raise WeightsError(
                f"{path} makes states of width {config.d_model}, and the model reads {dim}",
                "caption.dim and model.caption_dim of the preset hold the width",
            )
        self._tokenizer = load_tokenizer(tokenizer, tokens, config.vocab_size)
        self._model: UMT5EncoderModel | None = None
        self._states: dict[str, Tensor] = {}

    def keep(self) -> None:
        """Keep the encoder in memory from now on."""
        if self._model is None:
            self._model = self._loaded()

    @contextmanager
    def resident(self) -> Iterator["UMT5Captions"]:
        """The encoder in memory for as long as this lasts, and freed then."""
        self.keep()
        try:
            yield self
        finally:
            self._model = None
            gc.collect()
            if self._device != "cpu":
                torch.cuda.empty_cache()

    def encode(self, captions: list[str]) -> Tensor:
        """States (b, tokens, d) of the captions, cleaned; the empty caption is its end token alone."""
        texts = [clean(caption) for caption in captions]
        new = list(dict.fromkeys(text for text in texts if text not in self._states))
        if new and self._model is None:
            with self.resident():
                return self.encode(captions)
        if len(self._states) + len(new) > REMEMBERED:
            self._states.clear()
            new = list(dict.fromkeys(texts))
        for text in new:
            ids = torch.tensor([self.tokenize(text)], dtype=torch.int64)
            self._states[text] = self.states(ids, torch.ones_like(ids))[0].cpu()
        rows = [self._states[text] for text in texts]
        padded = torch.zeros(len(rows), self.tokens, self._config.d_model)
        for row, states in zip(padded, rows, strict=True):
            row[: len(states)] = states
        return padded

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a cleaned caption, at most `tokens` with the end token."""
        ids = self._tokenizer.encode(text).ids
        if not ids or ids[-1] != END:  # some tokenizer files leave it to the library
            ids = [*ids[: self.tokens - 1], END]
        return ids

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States (b, t, d), float32, of ids (b, t) where mask (b, t) is 1; only while resident."""
        if self._model is None:
            raise RuntimeError("the caption encoder is not in memory; use `with captions.resident():`")
        with torch.autocast(torch.device(self._device).type, enabled=False), torch.inference_mode():
            out = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device))
        return out.last_hidden_state.float()

    def _loaded(self) -> "UMT5EncoderModel":
        model = self._empty()
        self._load(
            model,
            self._weights,
            device=self._device,
            dtype=self._dtype,
            float32_parts=(),
            file_key=self._file_key,
        )
        model.set_input_embeddings(model.shared)  # one tensor again, as transformers has it
        return model.eval()

    def _empty(self) -> "UMT5EncoderModel":
        from transformers import UMT5EncoderModel

        with torch.device("meta"):
            return UMT5EncoderModel(self._config)


def clean(caption: str) -> str:
    """The caption with broken characters and HTML entities mended, and single spaces."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return re.sub(r"\s+", " ", text).strip()


def load_tokenizer(folder: Path, tokens: int, vocabulary: int) -> Any:
    """The tokenizer in a folder's `tokenizer.json`, cutting at `tokens`; raises WeightsError.

    `vocabulary` is the number of ids the encoder knows.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises the bare class
        raise WeightsError(f"{path} can't be read as a tokenizer ({error})", "fetch it again") from error
    if tokenizer.get_vocab_size() > vocabulary:
        raise WeightsError(
            f"{path} has {tokenizer.get_vocab_size()} tokens and the caption encoder knows {vocabulary}",
            "it is another model's tokenizer",
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens)
    return tokenizer


def open_encoder(path: Path) -> tuple[Path, "UMT5Config", Callable[[str], str]]:
    """The file the weights are in, their configuration, and the map to the names in that file."""
    from transformers import UMT5Config

    try:
        if not path.is_dir():
            return path, UMT5Config(**sizes_of(read_shapes(path))), original_key
        config, weights = UMT5Config(**read_config(path)), weights_in(path)
    except WeightsError:
        raise
    except Exception as error:  # the library raises all sorts
        raise WeightsError(f"{path} has sizes no umT5 can have ({error})", "fetch it again") from error
    twice = "encoder.embed_tokens.weight" in read_shapes(weights)  # the embedding, which is one with `shared`

    def key(name: str) -> str:
        return "shared.weight" if name == "encoder.embed_tokens.weight" and not twice else name

    return weights, config, key


_ORIGINAL = (
    (r"^(shared|encoder\.embed_tokens)\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.(\d+)\.", r"blocks.\1."),
    (r"\.layer\.0\.SelfAttention\.relative_attention_bias\.", ".pos_embedding.embedding."),
    (r"\.layer\.0\.SelfAttention\.", ".attn."),
    (r"\.layer\.0\.layer_norm\.", ".norm1."),
    (r"\.layer\.1\.DenseReluDense\.wi_0\.", ".ffn.gate.0."),
    (r"\.layer\.1\.DenseReluDense\.wi_1\.", ".ffn.fc1."),
    (r"\.layer\.1\.DenseReluDense\.wo\.", ".ffn.fc2."),
    (r"\.layer\.1\.layer_norm\.", ".norm2."),
)


def original_key(name: str) -> str:
    """The name in `models_t5_umt5-xxl-enc-bf16.pth` of a weight of UMT5EncoderModel."""
    for pattern, replacement in _ORIGINAL:
        name = re.sub(pattern, replacement, name)
    return name


def sizes_of(shapes: dict[str, Shape]) -> dict[str, Any]:
    """The arguments of UMT5Config that an original file's keys and shapes tell.

    What they don't tell is as in the released file, so that the strict comparison names what is missing.
    """

    def size(released: int, pattern: str, axis: int) -> int:
        told = (
            shape[axis] for key, shape in shapes.items() if re.fullmatch(pattern, key) and len(shape) > axis
        )
        return next(told, released)

    heads = size(64, r"blocks\.\d+\.pos_embedding\.embedding\.weight", 1)
    blocks = {int(match[1]) for key in shapes if (match := re.match(r"blocks\.(\d+)\.", key))}
    return {
        "vocab_size": size(256384, r"token_embedding\..*", 0),
        "d_model": size(4096, r"blocks\.\d+\.norm[12]\.weight", 0),
        "d_kv": size(4096, r"blocks\.\d+\.attn\.[qkv]\.weight", 0) // max(1, heads),
        "d_ff": size(10240, r"blocks\.\d+\.ffn\.(fc1|gate\.0)\.weight", 0),
        "num_layers": len(blocks) or 24,
        "num_heads": heads,
        "relative_attention_num_buckets": size(32, r"blocks\.\d+\.pos_embedding\.embedding\.weight", 0),
    }
