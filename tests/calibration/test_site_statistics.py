"""Entropy and moments of activation sites."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from calibration.statistics import Statistics, collect, entropy_bits
from targets.errors import UsageError

ON_COUNTS = (0, 1, 2, 4, 6, 8)


class OneSite(nn.Module):
    """Only an activation, so that z is the input itself."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def site_of(z: Tensor, act: nn.Module | None = None, batch: int = 4, **options):
    return collect(OneSite(act or nn.ReLU()), ["act"], z.split(batch), **options)["act"]


def with_on_counts() -> Tensor:
    """[8, 6]: channel c is positive in the first ON_COUNTS[c] of eight samples, else negative."""
    return torch.tensor([[1.0 if sample < on else -1.0 for on in ON_COUNTS] for sample in range(8)])


def random_maps(seed: int = 0, count: int = 12, channels: int = 5, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    means = torch.linspace(-2, 2, channels)[:, None, None]
    return torch.randn(count, channels, size, size, generator=generator) + means


def test_anchor_of_six_channels():
    site = site_of(with_on_counts())
    expected = [0, 0.5435644431995964, 0.8112781244591328, 1, 0.8112781244591328, 0]
    assert site.on.tolist() == list(ON_COUNTS)
    assert site.channel_entropy().tolist() == pytest.approx(expected, abs=1e-15)
    assert site.entropy() == pytest.approx(0.527687, abs=5e-7)


@pytest.mark.parametrize(
    ("on", "off", "bits"),
    [(4, 4, 1.0), (8, 0, 0.0), (0, 8, 0.0), (2, 6, 0.8112781244591328), (1, 7, 0.5435644431995964), (0, 0, 0.0)],
)
def test_t1_1_entropy_of_counts(on: int, off: int, bits: float):
    assert float(entropy_bits(torch.tensor([[on], [off]]))) == pytest.approx(bits, abs=1e-15)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_t1_2_symmetric_and_scale_invariant(seed: int):
    z = random_maps(seed)
    scale = torch.rand(z.shape[1], generator=torch.Generator().manual_seed(seed))[:, None, None] + 0.1
    entropy = site_of(z).channel_entropy()
    assert torch.allclose(entropy, site_of(-z).channel_entropy(), atol=1e-15)
    assert torch.equal(entropy, site_of(z * scale).channel_entropy())


def test_t1_3_zeros():
    site = site_of(torch.zeros(8, 1))
    assert (site.entropy("on"), site.entropy("drop")) == (0.0, 0.0)
    assert site.zero.tolist() == [8]
    # 30 % zeros, the rest half on and half off: 0.65 on with zeros, 0.5 without
    z = torch.tensor([0.0] * 6 + [1.0] * 7 + [-1.0] * 7)[:, None]
    assert site_of(z).entropy("on") == pytest.approx(-(0.65 * math.log2(0.65) + 0.35 * math.log2(0.35)), abs=1e-15)
    assert site_of(z).entropy("drop") == 1.0


@given(seed=st.integers(0, 2**16), batch=st.integers(1, 12), order=st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_t1_4_independent_of_order_and_batch_size(seed: int, batch: int, order):
    z = random_maps(seed)
    shuffled = list(range(len(z)))
    order.shuffle(shuffled)
    one, other = site_of(z, batch=12), site_of(z[shuffled], batch=batch)
    for name in ("on", "off", "zero", "saturated", "minimum", "maximum"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(one.channel_entropy(), other.channel_entropy())
    for name in ("mean", "variance", "phi_mean", "phi_variance", "covariance", "slope", "intercept"):
        assert torch.allclose(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-14), name


def test_t1_4_mean_of_batch_entropies_is_below_the_pooled_one():
    z = random_maps(3)
    of_batches = [site_of(part).entropy() for part in z.split(3)]
    assert sum(of_batches) / len(of_batches) < site_of(z).entropy()


def test_t1_5_pooled_entropy_is_at_least_the_mean_over_positions():
    z = random_maps(1)
    per_position = site_of(z, pool="none")
    assert per_position.channels == 5 * 36
    assert per_position.observations == len(z)
    assert site_of(z).observations == len(z) * 36
    by_channel = per_position.channel_entropy().view(5, 36).mean(1)
    assert (site_of(z).channel_entropy() >= by_channel).all()


def test_t1_6_channels_last():
    z = random_maps(2)
    expected = site_of(z).channel_entropy()
    assert torch.equal(site_of(z.permute(0, 2, 3, 1), channel_dims={"act": 3}).channel_entropy(), expected)
    assert torch.equal(site_of(z.flatten(2).transpose(1, 2)).channel_entropy(), expected)
    assert torch.equal(site_of(z.flatten(2), channel_dims={"act": 1}).channel_entropy(), expected)


def test_t1_7_always_on_means_identity():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    nn.init.constant_(network[0].bias, 50.0)
    x = torch.rand(16, 4)
    before = network(x)
    site = collect(network, ["1"], [x])["1"]
    assert site.entropy() == 0 and not site.off.any()
    network[1] = nn.Identity()
    assert torch.equal(network(x), before)


def test_t1_8_inplace_activations_are_seen_before_they_run():
    z = random_maps(4)
    plain, inplace = site_of(z.clone()), site_of(z.clone(), nn.ReLU(inplace=True))
    for name in ("on", "off", "mean", "covariance", "phi_mean"):
        assert torch.equal(getattr(plain, name), getattr(inplace, name)), name


def test_saturation_is_a_third_state():
    z = torch.tensor([-1.0, 1.0, 6.0, 9.0])[:, None]
    site = site_of(z, nn.ReLU6())
    assert (site.on.item(), site.off.item(), site.saturated.item()) == (3, 1, 2)
    assert site.entropy(states=2) == pytest.approx(0.8112781244591328)
    assert site.entropy(states=3) == 1.5  # a half, a quarter, a quarter
    assert site_of(z, nn.Hardtanh(0, 9)).saturated.item() == 1
    assert site_of(z, nn.Hardsigmoid()).saturated.item() == 2
    assert site_of(z, nn.Hardswish()).saturated.item() == 0


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU(), nn.Hardswish(), nn.PReLU(5)])
def test_moments_and_best_line_against_numpy_style_computation(act: nn.Module):
    z = random_maps(5)
    site = site_of(z, act)
    with torch.no_grad():
        phi = act(z).double().transpose(0, 1).flatten(1)
    rows = z.double().transpose(0, 1).flatten(1)
    assert torch.allclose(site.variance, rows.var(1, correction=0), rtol=1e-12)
    assert torch.allclose(site.product_mean, (rows * phi).mean(1), rtol=1e-12, atol=1e-14)
    for channel in range(5):
        design = torch.stack([rows[channel], torch.ones_like(rows[channel])], 1)
        slope, intercept = torch.linalg.lstsq(design, phi[channel]).solution
        residual = (phi[channel] - slope * rows[channel] - intercept).square().mean()
        assert float(site.slope[channel]) == pytest.approx(float(slope), rel=1e-9, abs=1e-12)
        assert float(site.intercept[channel]) == pytest.approx(float(intercept), rel=1e-9, abs=1e-12)
        assert float(site.residual_variance[channel]) == pytest.approx(float(residual), rel=1e-7, abs=1e-12)


def test_moments_survive_a_large_mean():
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * 1e-2 + 1e4
    site = site_of(z, batch=7)
    assert torch.allclose(site.variance, z.double().var(0, correction=0), rtol=1e-9)


def test_a_constant_neuron_has_slope_zero():
    site = site_of(torch.full((9, 1), 0.1), batch=2)
    assert (site.slope.item(), site.intercept.item()) == (0.0, pytest.approx(0.1))


def test_statistics_survive_saving(tmp_path):
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU6())
    statistics = collect(network, ["3", "1"], [torch.randn(20, 4)])
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = Statistics.load(tmp_path / "statistics.safetensors")
    assert list(loaded) == ["3", "1"] and loaded.samples == 20 and len(loaded) == 2
    for name in ("on", "off", "mean", "slope", "residual_variance", "maximum"):
        assert torch.equal(getattr(loaded["1"], name), getattr(statistics["1"], name))
    (tmp_path / "cut").write_bytes((tmp_path / "statistics.safetensors").read_bytes()[:100])
    with pytest.raises(UsageError) as caught:
        Statistics.load(tmp_path / "cut")
    assert caught.value.code == "STATISTICS_FORMAT"


def test_modes_are_restored_and_eval_mode_is_used():
    network = nn.Sequential(nn.Dropout(0.9), nn.ReLU(), nn.BatchNorm1d(3))
    network[2].eval()
    x = torch.rand(50, 3) + 0.1
    assert collect(network, ["1"], [(x, None)])["1"].on.tolist() == [50, 50, 50]  # dropout would have made zeros
    assert [part.training for part in network] == [True, True, False]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.same = self.act
        self.idle = nn.ReLU()
        self.once = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.once(self.act(self.act(x) - 1))


@pytest.mark.parametrize(
    ("sites", "code"),
    [
        (["act"], "SITE_SHARED"),
        (["once", "act", "same"], "SITE_SHARED"),
        (["idle"], "SITE_UNUSED"),
        (["onec"], "SITE_UNKNOWN"),
    ],
)
def test_sites_that_cannot_be_observed(sites: list[str], code: str):
    network = Shared()
    with pytest.raises(UsageError) as caught:
        collect(network, sites, [torch.randn(4, 3)])
    assert caught.value.code == code and sites[-1] in caught.value.what
    assert not any(part._forward_pre_hooks for part in network.modules())


def test_nearest_site_is_suggested():
    with pytest.raises(UsageError, match="did you mean 'once'"):
        collect(Shared(), ["onec"], [torch.randn(4, 3)])


@pytest.mark.parametrize(
    ("batches", "code"),
    [
        ([], "DATA_EMPTY"),
        ([torch.tensor([[1.0, float("nan")]])], "SITE_NOT_FINITE"),
        ([torch.ones(2, 3), torch.ones(2, 4)], "SITE_SHAPE"),
    ],
)
def test_unusable_batches(batches: list[Tensor], code: str):
    with pytest.raises(UsageError) as caught:
        collect(OneSite(nn.ReLU()), ["act"], batches)
    assert caught.value.code == code


def test_traced_graphs_are_observed_like_modules():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU())
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    traced = collect(torch.fx.symbolic_trace(network), ["1", "3"], [x])
    plain = collect(network, ["1", "3"], [x])
    assert all(torch.equal(traced[site].covariance, plain[site].covariance) for site in ("1", "3"))


def test_progress_counts_samples():
    counts: list[int] = []
    site_of(torch.ones(10, 2), progress=counts.append)
    assert counts == [4, 8, 10]


def test_large_activations_are_taken_in_parts(monkeypatch):
    z = random_maps(6)
    whole = site_of(z)
    monkeypatch.setattr("calibration.statistics.CHUNK_ELEMENTS", 200)
    parts = site_of(z)
    assert torch.equal(whole.on, parts.on)
    assert torch.allclose(whole.covariance, parts.covariance, rtol=1e-12)
