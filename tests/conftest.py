"""One thread for every native library: two test workers on two cores starve each other's OpenMP barriers."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # read when torch and numpy load, so set before any test imports them

import pytest  # noqa: E402


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu run wherever there is one."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device")
