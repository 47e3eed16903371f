"""Reading models: names, values, dynamic batch, shared modules, and every way a user gets it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks.small import small
from torch import nn

from pipeline.model.ingest import ingest
from targets.errors import UsageError

NETWORKS = Path(__file__).parents[2] / "networks"
SMALL = f"{NETWORKS / 'small.py'}:small"


@pytest.fixture(scope="module")
def network():
    return ingest(SMALL, example=lambda: torch.randn(2, 3, 12, 12))


def test_the_network_computes_what_the_model_computes_at_any_batch(network) -> None:
    model = small()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 12, 12)
        with torch.no_grad():
            assert torch.equal(network(x), model(x))


def test_layers_carry_the_users_names(network) -> None:
    layers = network.layers()
    assert isinstance(layers["fused.expand"], nn.Conv2d) and layers["fused.norm"].eps == 1e-3
    assert isinstance(layers["basic.relu"], nn.ReLU)  # F.relu inside `basic`
    assert isinstance(layers["gelu"], nn.GELU)
    assert "drop" not in layers
    assert network.sources["fused.expand"].rpartition(":")[0].endswith("small.py")


def test_a_shared_activation_is_split_into_one_site_a_call(network) -> None:
    assert {"relu", "relu_1"} <= set(network.layers())
    assert network.layer("relu") is not network.layer("relu_1")


def test_every_parameter_trains(network) -> None:
    fresh = network.copy()
    fresh(torch.randn(4, 3, 12, 12)).square().sum().backward()
    assert all(p.grad is not None for p in fresh.graph.parameters())
    assert "offset" in dict(fresh.graph.named_parameters())


def test_a_saved_program_reads_back_the_same(network, tmp_path: Path) -> None:
    torch.export.save(network.exported(), tmp_path / "model.pt2")
    again = ingest(str(tmp_path / "model.pt2"))
    x = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
    assert list(again.layers()) == list(network.layers())


def test_weights_are_loaded_from_safetensors_and_from_checkpoints(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = small()
    with torch.no_grad():
        other.head.bias += 1
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in other.state_dict().items()}}, tmp_path / "w.pt")
    x = torch.randn(2, 3, 12, 12)
    for file in ("w.safetensors", "w.pt"):
        loaded = ingest(SMALL, weights=tmp_path / file, example=lambda: x)
        with torch.no_grad():
            assert torch.equal(loaded(x), other(x))


def error_of(source: str, tmp_path: Path, text: str | None = None, **options) -> UsageError:
    if text is not None:
        (tmp_path / source.partition(":")[0]).write_text("import torch\nfrom torch import nn\n" + text)
        source = f"{tmp_path / source}"
    with pytest.raises(UsageError) as caught:
        ingest(source, example=lambda: torch.randn(2, 3, 12, 12), **options)
    assert len(str(caught.value).splitlines()) == 4
    return caught.value


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    error = error_of(f"{tmp_path / 'modle.py'}:build", tmp_path)
    assert error.code == "MODEL_MISSING" and "model.py" in error.fix


def test_a_raising_callable_names_the_users_line(tmp_path: Path) -> None:
    error = error_of("raising.py:build", tmp_path, "def build():\n    x = 1\n    raise KeyError('width')\n")
    assert error.code == "MODEL_CALLABLE" and "raising.py:5 in build" in error.where


def test_control_flow_on_data_names_the_users_line(tmp_path: Path) -> None:
    error = error_of(
        "branching.py:Net",
        tmp_path,
        "class Net(nn.Module):\n    def forward(self, x):\n        y = x.mean()\n"
        "        if y > 0:\n            return x\n        return -x\n",
    )
    assert error.code == "MODEL_CONTROL_FLOW" and "branching.py:6 in forward" in error.where


def test_a_wrong_input_shape_is_the_users_to_mend(tmp_path: Path) -> None:
    error = error_of(
        "narrow.py:Net",
        tmp_path,
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.c = nn.Conv2d(4, 2, 1)\n    def forward(self, x):\n        return self.c(x)\n",
    )
    assert error.code == "MODEL_INPUT" and "narrow.py:8 in forward" in error.where and "[2, 3, 12, 12]" in error.what


def test_a_callable_that_returns_no_network(tmp_path: Path) -> None:
    assert error_of("dict.py:build", tmp_path, "def build():\n    return {}\n").code == "MODEL_TYPE"


def test_broken_weights(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(data[: len(data) // 2])
    (tmp_path / "half.safetensors").write_bytes(data[:100])
    for name in ("half.pt", "half.safetensors"):
        assert error_of(SMALL, tmp_path, weights=tmp_path / name).code == "WEIGHTS_BROKEN"
    assert error_of(SMALL, tmp_path, weights=tmp_path / "none.pt").code == "WEIGHTS_MISSING"
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "other.pt")
    error = error_of(SMALL, tmp_path, weights=tmp_path / "other.pt")
    assert error.code == "WEIGHTS_FIT" and "26 missing" in error.why and "head.weight" in error.why
    (tmp_path / "model.pt2").write_bytes(b"PK")
    assert error_of(str(tmp_path / "model.pt2"), tmp_path).code == "MODEL_BROKEN"
