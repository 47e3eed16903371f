"""What is moved out of the staging directory replaces what was there, files and packages alike."""

from pathlib import Path

from pipeline.export.artifact import Artifact, bytes_of, sha256_of
from pipeline.export.staging import PREFIX, move_into, staging_beside


def package(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    return directory


def test_a_package_replaces_an_earlier_one_whole(tmp_path):
    out = tmp_path / "out"
    package(out / "model.mlpackage", stale="old", Manifest="old")
    with staging_beside(out) as (staging, _):
        package(staging / "model.mlpackage", Manifest="new")
        (staging / "list.config").write_text("beside")
        path = move_into(out, staging / "model.mlpackage", staging / "list.config")
    assert path == out / "model.mlpackage" and [file.name for file in path.iterdir()] == ["Manifest"]
    assert (out / "list.config").read_text() == "beside" and not list(tmp_path.glob(f"{PREFIX}*"))


def test_a_packages_digest_is_of_its_paths_and_contents(tmp_path):
    one = package(tmp_path / "one", a="1", **{"sub/b": "22"})
    same = package(tmp_path / "same", **{"sub/b": "22"}, a="1")
    assert sha256_of(one) == sha256_of(same) and bytes_of(one) == 3
    assert sha256_of(package(tmp_path / "renamed", a="1", **{"sub/c": "22"})) != sha256_of(one)
    assert sha256_of(package(tmp_path / "changed", a="1", **{"sub/b": "23"})) != sha256_of(one)


def test_discard_removes_the_artifact_and_what_lies_beside(tmp_path):
    path = package(tmp_path / "model.mlpackage", Manifest="x")
    (tmp_path / "list.config").write_text("")
    (tmp_path / "coreml.log").write_text("stays")
    artifact = Artifact(path, "coreml", "", 1, "coreml", "iOS 16", (), (), {}, 1.0, beside=("list.config",))
    artifact.discard()
    assert [file.name for file in tmp_path.iterdir()] == ["coreml.log"]
