"""Optimizers of other packages resume exactly and put the weights in place that are validated."""

from pathlib import Path

import pytest
import torch
from helpers.interrupted import Kill, Killed, assert_same_run, resume
from helpers.runs import run
from torch import nn

from robustcert.training.optimizers.lookahead import Lookahead


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rate"), [("nadam_lookahead", "optimizer.lr"), ("schedule_free", "lr")]
)
def test_a_run_resumes_bit_for_bit(name: str, rate: str, tmp_path: Path) -> None:
    overrides = (f"optimizer={name}", f"optimizer.{rate}=0.02", "certify=false")
    overrides = (*overrides, "trainer.max_epochs=3")
    assert run(tmp_path / "straight", *overrides) > 0
    with pytest.raises(Killed):
        run(tmp_path / "resumed", *overrides, callbacks=[Kill(2)])
    resume(tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_lookahead_goes_half_way_back() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = Lookahead([weight], optimizer=lambda p: torch.optim.SGD(p, lr=0.1), k=2, alpha=0.5)
    for expected in (0.9, 0.9, 0.8, 0.8):  # steps of -0.1, and back by half after every second
        weight.grad = torch.ones(1)
        optimizer.step()
        torch.testing.assert_close(weight.item(), expected, rtol=1e-6, atol=0)
