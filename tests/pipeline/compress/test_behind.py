"""What is computed once for many edits gives what each edited network gives by itself."""

from __future__ import annotations

import torch
from networks.resnet import CifarResNet
from networks.small import randomise_norms
from torch import nn

from pipeline.compress.analysis import run
from pipeline.compress.behind import Behind
from pipeline.compress.truncate import truncate
from pipeline.model.edits import replay
from pipeline.model.ingest import export_program, from_program
from pipeline.model.network import positions


def test_outputs_behind_a_place_are_those_of_the_edited_network() -> None:
    x = torch.randn(6, 3, 32, 32)
    torch.manual_seed(0)
    base = from_program(export_program(randomise_norms(CifarResNet(1)).eval(), (x[:2],)))
    batches, place = [x[:4], x[4:]], positions(base)
    behind = Behind(base, batches)
    layers = [name for name, layer in base.layers().items() if isinstance(layer, nn.Conv2d)]
    for name in layers:
        behind.advance(place[name])
        edited = replay(base, [truncate(name, 2)])
        assert torch.equal(behind.outputs(edited), run(edited, batches))
        assert (behind.outputs(edited) - run(base, batches)).abs().max() > 1e-4
