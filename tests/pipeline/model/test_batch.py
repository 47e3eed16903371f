"""Programs saved for one batch size: traced for any where that means the same, refused where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks.small import small
from networks.vit import ViT
from torch import nn

from pipeline.model.batch import fixed_batch, for_any_batch
from pipeline.model.ingest import ingest
from targets.errors import UsageError


class Reshaped(nn.Module):
    """The batch of the example is a number in it."""

    def forward(self, x):
        return x.reshape(4, -1)


class Centred(nn.Module):
    """A sample's output depends on the others of its batch; traces at any."""

    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_program_of_one_batch_size_is_read_for_any(batch: int, tmp_path: Path) -> None:
    model = small()
    torch.export.save(torch.export.export(model, (torch.randn(batch, 3, 12, 12),)), tmp_path / "model.pt2")
    network = ingest(str(tmp_path / "model.pt2"))
    for samples in (1, 2, 5):
        x = torch.randn(samples, 3, 12, 12)
        with torch.no_grad():
            assert torch.allclose(network(x), model(x), atol=1e-5)
    assert "fused.expand" in network.layers() and network.sources["fused.expand"].partition(":")[0].endswith("small.py")


@pytest.mark.parametrize(
    ("model", "batch"),
    [(Reshaped(), 4), (Centred(), 4), (ViT(16, 1, 2, size=12, patch=4, channels=3, classes=5), 3)],
    ids=["reshaped", "centred", "transformer"],
)
def test_one_that_means_something_else_at_another_is_refused(model: nn.Module, batch: int) -> None:
    """A transformer's reshapes have the batch of the example in them."""
    program = torch.export.export(model.eval(), (torch.randn(batch, 3, 12, 12),))
    assert fixed_batch(program) == batch
    with pytest.raises(UsageError) as caught:
        for_any_batch(program)
    assert caught.value.code == "MODEL_BATCH" and f"a batch of {batch}" in caught.value.why
    assert "dynamic_shapes" in caught.value.fix


def test_a_symbolic_one_is_left_alone() -> None:
    dynamic = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(small(), (torch.randn(2, 3, 12, 12),), dynamic_shapes=dynamic)
    assert for_any_batch(program) is program
