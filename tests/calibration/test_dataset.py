"""Opening the user's data: every source, and an error with a stable code for everything that can be wrong with it."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calibration.dataset import Samples, open_samples
from targets.errors import UsageError

X = np.arange(10 * 3 * 4 * 4, dtype=np.uint8).reshape(10, 3, 4, 4)
Y = np.arange(10) % 5


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(folder / "data.npz", **arrays)
    return folder / "data.npz"


def script(folder: Path, body: str, name: str = "data.py") -> str:
    (folder / name).write_text(dedent(body))
    return f"{folder / name}:samples"


def picture(path: Path, width: int, height: int, colour: object = (10, 20, 30), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), colour).save(path)


def everything(samples: Samples, batch_size: int = 4) -> tuple[torch.Tensor, torch.Tensor | None]:
    batches = list(samples.batches(batch_size))
    labels = torch.cat([y for _, y in batches]) if samples.has_labels else None
    return torch.cat([x for x, _ in batches]), labels


def refused(code: str, source: str | Path, validate: bool = False, **options) -> UsageError:
    with pytest.raises(UsageError) as caught:
        samples = open_samples(source, **options)
        if validate:
            samples.validate()
    assert caught.value.code == code
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 4
    return caught.value


# npz


def test_npz_of_bytes_is_scaled(tmp_path):
    samples = open_samples(npz(tmp_path, x=X, y=Y), input_shape=(3, 4, 4), classes=5)
    x, y = everything(samples)
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert torch.equal(x, torch.from_numpy(X).float() / 255)
    assert y.tolist() == Y.tolist()
    info = samples.validate()
    assert (info.count, info.shape, info.has_labels, info.classes) == (10, (3, 4, 4), True, 5)
    assert (info.minimum, info.maximum) == (0.0, 1.0)


def test_npz_of_floats_is_taken_as_it_is_and_may_lack_labels_and_names(tmp_path):
    values = np.linspace(-3, 3, 12).reshape(4, 3)
    samples = open_samples(npz(tmp_path, features=values))
    x, y = everything(samples)
    assert y is None and not samples.has_labels and samples.classes is None
    assert torch.equal(x, torch.from_numpy(values).float())


def test_mean_and_std_are_applied_per_channel(tmp_path):
    file = npz(tmp_path, x=X)
    x, _ = everything(open_samples(file, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0)))
    plain, _ = everything(open_samples(file))
    expected = (plain - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.25, 2.0]).view(3, 1, 1)
    assert torch.equal(x, expected)
    refused("DATA_SHAPE", file, mean=(0.1, 0.2))
    refused("DATA_SHAPE", file, std=(0.0,))


def test_npz_that_cannot_be_used(tmp_path):
    refused("DATA_FORMAT", npz(tmp_path, y=Y))
    refused("DATA_FORMAT", npz(tmp_path, x=np.array([object()])))
    refused("DATA_FORMAT", npz(tmp_path, x=X.astype(np.int32)))
    refused("DATA_FORMAT", npz(tmp_path, x=np.float32(3.0)))
    refused("DATA_LABELS", npz(tmp_path, x=X, y=Y[:9]))
    refused("DATA_LABELS", npz(tmp_path, x=X, y=np.eye(10)))
    refused("DATA_LABELS", npz(tmp_path, x=X, y=np.array(["cat"] * 10)))
    refused("DATA_EMPTY", npz(tmp_path, x=X[:0]))
    error = refused("DATA_SHAPE", npz(tmp_path, x=X), input_shape=(1, 28, 28))
    assert "[3, 4, 4]" in error.why and "[1, 28, 28]" in error.why
    content = npz(tmp_path, x=X).read_bytes()
    (tmp_path / "data.npz").write_bytes(content[: len(content) // 2])
    refused("DATA_FORMAT", tmp_path / "data.npz")
    (tmp_path / "data.npz").write_bytes(b"not a zip")
    refused("DATA_FORMAT", tmp_path / "data.npz")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_name_the_sample(tmp_path, bad: float):
    x = np.zeros((100, 2), np.float32)
    x[71, 1] = bad
    assert "sample 71 " in refused("DATA_NAN", npz(tmp_path, x=x), validate=True).where


def test_a_value_beyond_float32_is_refused_without_a_warning(tmp_path, recwarn):
    x = np.zeros((100, 2))
    x[71, 1] = 1e300
    assert "sample 71 " in refused("DATA_NAN", npz(tmp_path, x=x), validate=True, mean=[0.5]).where
    assert not recwarn.list


@pytest.mark.parametrize(("label", "classes"), [(5, 5), (-1, 5), (-1, None)])
def test_labels_out_of_range_name_the_sample(tmp_path, label: int, classes: int | None):
    y = Y.copy()
    y[7] = label
    error = refused("DATA_LABELS", npz(tmp_path, x=X, y=y), validate=True, classes=classes)
    assert str(label) in error.what and "sample 7 " in error.where


# callables


@pytest.mark.parametrize(
    "returned",
    [
        "{'x': x, 'y': y}",
        "(x, y)",
        "list(zip(x, y))",
        "[(a, int(b)) for a, b in zip(x.numpy(), y)]",
        "zip(x, y)",
        "torch.utils.data.TensorDataset(x, y)",
    ],
)
def test_everything_a_callable_may_return(tmp_path, returned: str):
    source = script(
        tmp_path,
        f"""
        import torch
        def samples():
            x = torch.linspace(0, 1, 24).view(6, 1, 2, 2)
            y = torch.arange(6)
            return {returned}
        """,
    )
    samples = open_samples(source, input_shape=(1, 2, 2), classes=6)
    x, y = everything(samples)
    assert torch.equal(x, torch.linspace(0, 1, 24).view(6, 1, 2, 2))
    assert y.tolist() == list(range(6))


@pytest.mark.parametrize("tensor", ["x.bfloat16()", "x.half()", "x.double()", "x.clone().requires_grad_()"])
def test_tensors_of_any_floating_type_become_float32(tmp_path, tensor: str):
    body = "import torch\ndef samples():\n    x = torch.arange(24.).view(6, 1, 2, 2) / 8\n"
    whole, single = (
        script(tmp_path, f"{body}    return {tensor}"),
        script(tmp_path, f"{body}    return list({tensor})", "b.py"),
    )
    for source in (whole, single):
        x, _ = everything(open_samples(source))
        assert x.dtype == torch.float32 and torch.equal(x, torch.arange(24.0).view(6, 1, 2, 2) / 8)


@pytest.mark.parametrize(
    "returned",
    ["torch.ones(6, 2)", "list(torch.ones(6, 2))", "iter(torch.ones(6, 2))", "{'x': torch.ones(6, 2).numpy()}"],
)
def test_samples_without_labels(tmp_path, returned: str):
    samples = open_samples(script(tmp_path, f"import torch\ndef samples(): return {returned}"))
    assert len(samples) == 6 and not samples.has_labels
    assert next(samples.batches(3))[1] is None


def test_an_endless_iterator_is_read_up_to_the_limit(tmp_path):
    source = script(
        tmp_path,
        """
        import itertools, torch
        def samples():
            return (torch.full((2,), float(n)) for n in itertools.count())
        """,
    )
    x, _ = everything(open_samples(source, limit=5))
    assert x[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_neighbouring_files_and_packages_import(tmp_path, monkeypatch):
    (tmp_path / "neighbour_of_data.py").write_text("import torch\nX = torch.zeros(4, 2)\n")
    source = script(tmp_path, "from neighbour_of_data import X\ndef samples(): return X")
    path_before = list(sys.path)
    assert len(open_samples(source)) == 4
    assert sys.path == path_before
    (tmp_path / "package_of_data").mkdir()
    (tmp_path / "package_of_data" / "inner.py").write_text("import torch\ndef samples(): return torch.zeros(3, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(open_samples("package_of_data.inner:samples")) == 3


def test_a_callable_that_raises_names_the_users_line(tmp_path):
    source = script(
        tmp_path,
        """\
        import json
        def helper():
            return json.loads("{")
        def samples():
            return helper()
        """,
    )
    error = refused("DATA_CALLABLE", source)
    assert "data.py:3 in helper" in error.where and "JSONDecodeError" in error.what


def test_a_file_that_does_not_import_names_the_line(tmp_path):
    assert "data.py:2" in refused("DATA_CALLABLE", script(tmp_path, "x = 1\ny = 1 / 0\n")).where
    assert "data.py:1" in refused("DATA_CALLABLE", script(tmp_path, "def samples(:\n", name="other_data.py")).where
    assert "SystemExit" in refused("DATA_CALLABLE", script(tmp_path, "raise SystemExit(3)\n")).what


def test_a_dataset_that_raises_names_the_users_line(tmp_path):
    source = script(
        tmp_path,
        """\
        import torch
        class Broken(torch.utils.data.Dataset):
            def __len__(self): return 5
            def __getitem__(self, index):
                if index == 3:
                    raise KeyError("gone")
                return torch.zeros(2)
        def samples():
            return Broken()
        """,
    )
    assert "data.py:6 in __getitem__" in refused("DATA_CALLABLE", source, validate=True).where


def test_callables_that_are_not_there(tmp_path):
    script(tmp_path, "import torch\ndef samples(): return torch.ones(3, 2)")
    assert "did you mean 'samples'" in refused("DATA_CALLABLE", f"{tmp_path}/data.py:sample").fix
    assert "did you mean 'data.py'" in refused("DATA_MISSING", f"{tmp_path}/dato.py:samples").fix
    refused("DATA_MISSING", "no_such_package_here.data:samples")
    (tmp_path / "imports_nothing.py").write_text("import no_such_package_here\n")
    refused("DATA_CALLABLE", f"{tmp_path}/imports_nothing.py:samples")


@pytest.mark.parametrize(
    "returned", ["None", "'text'", "3", "torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(3, 2)))"]
)
def test_a_callable_that_returns_something_else(tmp_path, returned: str):
    refused("DATA_CALLABLE", script(tmp_path, f"import torch\ndef samples(): return {returned}"))


@pytest.mark.parametrize(
    ("returned", "code", "where"),
    [
        ("[torch.ones(2), torch.ones(3)]", "DATA_SHAPE", "sample 1 "),
        ("[(torch.ones(2), 0), torch.ones(2)]", "DATA_LABELS", "sample 1 "),
        ("[(torch.ones(2), 0), (torch.ones(2), 'cat')]", "DATA_LABELS", "sample 1 "),
        ("[(torch.ones(2), 0), (torch.ones(2), [0.0, 1.0])]", "DATA_LABELS", "sample 1 "),
        ("[(torch.ones(2), 0), ('path', 0)]", "DATA_FORMAT", "sample 1 "),
        ("[torch.ones(2), torch.ones(2, dtype=torch.int64)]", "DATA_FORMAT", "sample 1 "),
        ("[]", "DATA_EMPTY", "data.py"),
        ("iter([])", "DATA_EMPTY", "data.py"),
    ],
)
def test_samples_that_cannot_be_used(tmp_path, returned: str, code: str, where: str):
    source = script(tmp_path, f"import torch\ndef samples(): return {returned}")
    assert where in refused(code, source, validate=True).where


# folders


def test_class_folders(tmp_path):
    picture(tmp_path / "b" / "2.png", 8, 6, (255, 0, 0))
    picture(tmp_path / "b" / "1.png", 8, 6, (0, 255, 0))
    picture(tmp_path / "a" / "deep" / "x.JPEG", 12, 12, (255, 255, 255))
    picture(tmp_path / ".hidden" / "z.png", 4, 4)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    samples = open_samples(tmp_path, input_shape=(3, 4, 4), classes=2)
    x, y = everything(samples)
    assert y.tolist() == [0, 1, 1] and samples.classes == 2 and samples.select([2]).class_names == ("a", "b")
    assert x.shape == (3, 3, 4, 4)
    assert x[1, :, 0, 0].tolist() == [0, 1, 0] and x[2, :, 0, 0].tolist() == [1, 0, 0]  # 1.png before 2.png
    assert torch.equal(everything(samples)[0], x)  # the second time from the cache


def test_what_pixels_go_through_is_told(tmp_path):
    picture(tmp_path / "1.png", 4, 4, (10, 20, 30))
    plain = open_samples(tmp_path).pixel_normalization
    assert (plain.mean, plain.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    own = open_samples(tmp_path, mean=[0.5], std=[0.1, 0.2, 0.3]).pixel_normalization
    assert (own.mean, own.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    np.savez(tmp_path / "floats.npz", x=np.zeros((2, 3, 4, 4), np.float32))
    assert open_samples(tmp_path / "floats.npz", mean=[0.5]).pixel_normalization is None  # scaled by whom, and how?


def test_images_are_scaled_to_cover_and_cropped_at_the_centre(tmp_path):
    stripes = np.zeros((10, 30), np.uint8)
    stripes[:, 10:20] = 200  # the middle third
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    x, y = everything(open_samples(tmp_path, input_shape=(1, 5, 5)))
    assert y is None and x.shape == (1, 1, 5, 5)
    assert torch.allclose(x[..., 1:4], torch.tensor(200 / 255))
    assert (x > 0.6).all()  # the outer columns blend in a little of the black beside the crop


def test_transparency_and_grey_become_what_the_network_takes(tmp_path):
    picture(tmp_path / "k" / "1.png", 4, 4, (10, 20, 30, 128), "RGBA")
    picture(tmp_path / "k" / "2.png", 4, 4, 77, "L")
    assert everything(open_samples(tmp_path))[0].shape == (2, 3, 4, 4)
    assert everything(open_samples(tmp_path, input_shape=(1, 4, 4)))[0].shape == (2, 1, 4, 4)


def test_folders_that_cannot_be_used(tmp_path):
    refused("DATA_EMPTY", tmp_path)
    (tmp_path / "a").mkdir()
    refused("DATA_EMPTY", tmp_path)
    picture(tmp_path / "a" / "1.png", 4, 4)
    refused("DATA_LABELS", tmp_path, classes=10)
    refused("DATA_SHAPE", tmp_path, input_shape=(16,))
    refused("DATA_SHAPE", tmp_path, input_shape=(4, 8, 8))
    picture(tmp_path / "a" / "2.png", 5, 4)
    assert refused("DATA_SHAPE", tmp_path, validate=True).where.endswith("2.png")
    (tmp_path / "a" / "3.png").write_bytes(b"\x89PNG broken")
    error = refused("DATA_FORMAT", tmp_path, validate=True, input_shape=(3, 4, 4))
    assert error.where.endswith("3.png")
    (tmp_path / "a" / "3.png").write_bytes((tmp_path / "a" / "2.png").read_bytes()[:50])
    refused("DATA_FORMAT", tmp_path, validate=True, input_shape=(3, 4, 4))
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a" / "3.png")
    refused("DATA_FORMAT", tmp_path, validate=True, input_shape=(3, 4, 4))


def test_sources_that_do_not_exist_or_are_something_else(tmp_path):
    npz(tmp_path, x=X)
    assert "did you mean 'data.npz'" in refused("DATA_MISSING", tmp_path / "dat.npz").fix
    refused("DATA_MISSING", tmp_path / "nowhere" / "data")
    (tmp_path / "data.csv").write_text("1,2")
    refused("DATA_FORMAT", tmp_path / "data.csv")
    (tmp_path / "load.py").write_text("")
    assert "load.py:callable" in refused("DATA_FORMAT", tmp_path / "load.py").fix


# order, parts, fingerprints


@given(count=st.integers(2, 40), holdout=st.floats(0.05, 0.95), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_a_split_is_a_partition(tmp_path_factory, count: int, holdout: float, seed: int):
    samples = open_samples(npz(tmp_path_factory.mktemp("split"), x=np.arange(count, dtype=np.float32)[:, None]))
    if not 0 < round(holdout * count) < count:
        with pytest.raises(UsageError):
            samples.split(holdout, seed)
        return
    rest, held = samples.split(holdout, seed)
    assert len(held) == round(holdout * count)
    kept, out = (everything(part)[0].flatten().tolist() for part in (rest, held))
    assert sorted(kept + out) == list(range(count)) and kept == sorted(kept) and out == sorted(out)
    assert everything(samples.split(holdout, seed)[1])[0].flatten().tolist() == out


def test_take_select_and_limit(tmp_path):
    file = npz(tmp_path, x=X, y=Y)
    samples = open_samples(file)
    assert len(samples.take(3)) == 3 and len(samples.take(99)) == 10 and len(open_samples(file, limit=4)) == 4
    assert everything(samples.select([4, 0, 4]))[1].tolist() == [4, 0, 4]
    assert everything(samples.take(3).select([2, 1]))[1].tolist() == [2, 1]
    assert [len(x) for x, _ in samples.batches(4)] == [4, 4, 2]


def test_fingerprint_is_of_content_and_order(tmp_path):
    file = npz(tmp_path, x=X, y=Y)
    samples = open_samples(file)
    from_script = open_samples(
        script(
            tmp_path,
            f"""
        import numpy
        def samples():
            stored = numpy.load({str(file)!r})
            return list(zip(stored["x"], stored["y"]))
        """,
        )
    )
    assert samples.fingerprint == from_script.fingerprint
    others = [
        samples.take(9),
        samples.select([1, 0, *range(2, 10)]),
        open_samples(npz(tmp_path, x=X)),
        open_samples(npz(tmp_path, x=X, y=Y[::-1])),
        open_samples(npz(tmp_path, x=X.reshape(10, 48), y=Y)),
    ]
    assert len({samples.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_arrays_are_what_the_tensors_hold(tmp_path):
    samples = open_samples(npz(tmp_path, x=X, y=Y), mean=[0.5], std=[0.1, 0.2, 0.3])
    pairs = list(zip(samples.arrays(4), samples.batches(4), strict=True))
    assert len(pairs) == 3
    for (x, y), (tensor, labels) in pairs:
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert np.array_equal(x, tensor.numpy()) and np.array_equal(y, labels.numpy())
