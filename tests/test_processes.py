"""Two processes under torchrun train one model: gloo, on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_preset
from two_processes import STEPS, curve_stage

from uniavgen_cli.training.trainer import run

TESTS = Path(__file__).parent


def torchrun(*arguments: object) -> None:
    """Run a script or module in two processes; a failure fails the test with what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    torchrun(TESTS / "two_processes.py", folder, write_tiny_preset(folder))
    return folder


def test_both_hold_the_same_weights_after_different_batches(made: Path) -> None:
    for name in ("curve", "talking"):
        first, second = (torch.load(made / f"{name}-{number}.pt") for number in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first), name
    tasks = [(made / f"talking-{number}.txt").read_text().split() for number in range(2)]
    assert any(one != other for one, other in zip(*tasks, strict=True))  # a2v in one and not in the other


def test_two_are_one_with_both_batches(made: Path, tmp_path: Path) -> None:
    stage = curve_stage(joined=2)
    assert run(stage, tmp_path)
    two, one = torch.load(made / "curve-0.pt"), stage.module.state_dict()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5)
    averaged = torch.load(made / "curve" / "weights.pt"), torch.load(tmp_path / "weights.pt")
    for name in averaged[0]:
        torch.testing.assert_close(averaged[0][name], averaged[1][name], rtol=0, atol=1e-5)


def test_one_of_them_writes_the_losses_of_both(made: Path, tmp_path: Path) -> None:
    run(curve_stage(joined=2), tmp_path)
    two, one = ((folder / "losses.csv").read_text().split(",") for folder in (made / "curve", tmp_path))
    assert two[0] == one[0] == str(STEPS)
    assert float(two[2].partition("=")[2]) == pytest.approx(float(one[2].partition("=")[2]), abs=1e-4)


def test_a_cut_run_of_both_has_the_losses_of_an_unbroken_one(made: Path) -> None:
    rows = [(made / run / "losses.csv").read_text().split(",") for run in ("cut", "curve")]
    assert [row[0] for row in rows] == [str(STEPS)] * 2 and rows[0][2] == rows[1][2]
    cut, whole = (torch.load(made / run / "weights.pt") for run in ("cut", "curve"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
