"""Re-estimated batch-norm statistics against direct computation."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calibration.batchnorm import reestimate
from targets.errors import UsageError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(8, 4, 3),
        nn.BatchNorm2d(4),
    )


def inputs(count: int = 24) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 + 1


@given(batch=st.integers(2, 24).filter(lambda size: 24 % size != 1))
@settings(max_examples=10, deadline=None)
def test_the_first_norm_gets_the_pooled_statistics(batch: int):
    net = network()
    reestimate(net, inputs().split(batch))
    rows = net[0](inputs()).detach().double().transpose(0, 1).flatten(1)
    assert torch.allclose(net[1].running_mean.double(), rows.mean(1), rtol=1e-5, atol=1e-6)
    assert torch.allclose(net[1].running_var.double(), rows.var(1), rtol=1e-5)


def test_a_single_batch_equals_one_training_step_of_momentum_one():
    net, reference = network(), network()
    reestimate(net, [inputs()])
    reference.train()
    reference[3].eval()
    for norm in (reference[1], reference[5]):
        norm.momentum = 1.0
    reference(inputs())
    for index in (1, 5):
        assert torch.allclose(net[index].running_mean, reference[index].running_mean, rtol=1e-5, atol=1e-6)
        assert torch.allclose(net[index].running_var, reference[index].running_var, rtol=1e-5)


def test_unequal_batches_weigh_by_their_size():
    net = nn.Sequential(nn.BatchNorm1d(1))
    reestimate(net, [(torch.zeros(6, 1), None), (torch.full((2, 1), 4.0), None)])
    pooled = torch.tensor([0.0] * 6 + [4.0] * 2)
    assert net[0].running_mean.item() == 1.0
    assert net[0].running_var.item() == pytest.approx(pooled.var().item())
    assert net[0].num_batches_tracked.item() == 2


def test_an_edited_network_is_normalised_again():
    net = network()
    reestimate(net, [inputs()])
    with torch.no_grad():
        net[0].weight.mul_(7)
        net[0].bias.add_(3)
    reestimate(net, [inputs()])
    rows = net.eval()[:2](inputs()).detach().transpose(0, 1).flatten(1)
    assert torch.allclose(rows.mean(1), torch.zeros(8), atol=1e-5)
    assert torch.allclose(rows.std(1), torch.ones(8), atol=1e-3)


def test_modes_momenta_and_weights_are_left_as_they_were():
    net = network().train()
    net[5].eval()
    net[1].momentum = None
    before = copy.deepcopy(dict(net.named_parameters()))
    reestimate(net, inputs().split(8))
    assert [part.training for part in net] == [True, True, True, True, True, False]
    assert (net[1].momentum, net[5].momentum) == (None, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())
    assert not any(part._forward_pre_hooks for part in net)


def test_without_norms_nothing_is_read():
    def never():
        raise AssertionError("the samples were read")
        yield

    reestimate(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)), never())


def test_a_left_over_sample_is_left_out_and_alone_is_an_error():
    net = nn.Sequential(nn.BatchNorm1d(1))
    reestimate(net, torch.tensor([[0.0], [2.0], [50.0]]).split(2))
    assert net[0].running_mean.item() == 1.0
    with pytest.raises(UsageError) as caught:
        reestimate(net, [torch.ones(1, 1)])
    assert caught.value.code == "DATA_EMPTY"
    assert net[0].running_mean.item() == 1.0


def test_a_network_stays_as_it_is_beside_itself_even_where_a_channel_is_constant() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        net[0].weight[0] = 0  # this channel says nothing on any sample
        net[1].running_var.copy_(torch.tensor([0.7, 2.0, 0.1, 5.0]))
        net[1].running_mean.copy_(torch.tensor([0.2, -1.0, 0.0, 3.0]))
    before = [net[1].running_mean.clone(), net[1].running_var.clone()]
    same = copy.deepcopy(net)
    reestimate(same, torch.randn(40, 3, 5, 5).split(10), net)
    assert torch.allclose(same[1].running_mean, before[0], atol=1e-6)
    assert torch.allclose(same[1].running_var, before[1], rtol=1e-5)


def test_beside_a_reference_only_what_changed_is_made_up_for() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        net[1].running_var.fill_(3.0)  # not what the samples have
    louder = copy.deepcopy(net)
    with torch.no_grad():
        louder[0].weight *= 2
        louder[0].weight[1] = 0  # died
    x = torch.randn(64, 3, 5, 5)
    expected = net(x)
    reestimate(louder, x.split(16), net)
    kept = [0, 2, 3]
    assert torch.allclose(louder(x)[:, kept], expected[:, kept], atol=1e-3)
    assert louder[1].running_var[1] == 3.0
