"""What runs where: chosen by rule, refused in one line."""

import pytest
import torch

from uniavgen_cli.errors import UsageError
from uniavgen_cli.runtime import choose, free_memory


def test_the_cpu_as_asked() -> None:
    runtime = choose("cpu", "float32", "auto")
    assert runtime.device.value == "cpu" and runtime.device.reason == "asked for"
    assert runtime.torch_dtype == torch.float32
    assert runtime.attention.value == "sdpa" and "CUDA" in runtime.attention.reason
    with runtime.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_every_choice_has_a_reason() -> None:
    runtime = choose()
    assert runtime.device.value.startswith("cuda") == torch.cuda.is_available()
    assert all(
        choice.value and choice.reason for choice in (runtime.device, runtime.dtype, runtime.attention)
    )
    assert runtime.memory_bytes == pytest.approx(free_memory(runtime.device.value), rel=0.5)


def test_bfloat16_makes_the_products_so() -> None:
    with choose("cpu", "bfloat16").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "tpu"}, "'tpu'"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"dtype": "float8"}, "'float8'"),
        ({"attention": "magic"}, "'magic'"),
        ({"device": "cpu", "attention": "xformers"}, "CUDA"),
    ],
)
def test_what_is_not_there_is_refused(options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose(**options)
