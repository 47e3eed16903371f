"""What delegates take of real exports: a network they take whole, and others with one thing in the way."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from export_networks import save, workspace
from placed_networks import Normalise, Plain, Shift, Twist
from torch import nn

from pipeline.export.artifact import Artifact, sha256_of
from pipeline.export.together import export_all
from pipeline.model.lift import lift
from pipeline.model.network import Network
from pipeline.verify.delegation import Delegation, Fallback, Limits, Transposes, delegation, require_strict, violations
from pipeline.verify.records import delegation_record
from pipeline.verify.sites import sites
from targets import runners
from targets.arm.setup import is_ready
from targets.delegation.gpu import DELEGATE as GPU
from targets.delegation.naming import Site
from targets.delegation.onnx import REORDERS, read_onnx
from targets.errors import VerificationError
from targets.explain import explain
from targets.operators import RUNTIME, OperatorTime
from targets.profile import load_profile

MIDDLES = {"clean": nn.Identity, "twisted": Twist, "shifted": Shift, "normalised": lambda: Normalise(8)}
FORMATS = {
    "clean": ("tflite", "pte"),
    "twisted": ("tflite", "onnx", "pte", "pte-vulkan", "pte-coreml"),
    "shifted": ("tflite",),
    "normalised": ("onnx",),
}
BORDER = 4 * (3 * 28 * 24 + 10)  # float32 of the image and of the scores
MIDDLE = 4 * 8 * 14 * 12  # of what the middle reads, and of what it writes
CONVOLUTION = "Convolution (NHWC, F32) IGEMM"


def program(name: str) -> torch.export.ExportedProgram:
    return torch.export.load(workspace() / f"placed {name}.pt2")


@pytest.fixture(scope="module")
def artifacts() -> dict[tuple[str, str], Artifact]:
    """(network, format): its export; clean TFLite with a channels-first border is of the format "nchw"."""
    found = {}
    for name, formats in FORMATS.items():
        torch.manual_seed(0)
        saved = save(Plain(MIDDLES[name]()).eval(), workspace() / f"placed {name}.pt2")
        exported = export_all(saved, formats=formats, directory=workspace() / f"placed {name}")
        found.update({(name, format): artifact for format, artifact in exported.items()})
        if name == "clean":
            first = export_all(saved, formats=["tflite"], directory=workspace() / "placed nchw", channels_last=False)
            found[name, "nchw"] = first["tflite"]
    assert all(isinstance(artifact, Artifact) for artifact in found.values()), found
    return found


@pytest.fixture(scope="module")
def report(artifacts):
    """The delegation of a network in a format."""

    def told(name: str, format: str, times: tuple[OperatorTime, ...] = ()) -> Delegation:
        return delegation(artifacts[name, format], target="pixel-4-cpu", sites=sites(program(name)), times=times)

    return told


def timed(kind: str, milliseconds: float) -> OperatorTime:
    """A row of an inference that takes 10 ms."""
    return OperatorTime(
        kind, kind, "", "", (), milliseconds / 10, milliseconds, 0.0, 0, 0, 0.0, "compute"
    )  # fmt: skip


def sample(**fields) -> Delegation:
    return Delegation("0" * 64, "tflite", "", "ai-edge-litert", "XNNPACK", "", **fields)


@pytest.mark.export
@pytest.mark.slow
class TestExports:
    def test_a_clean_network_is_one_partition(self, report, artifacts):
        found = report("clean", "tflite")
        assert (found.partitions, found.fallbacks, found.transposes) == (1, (), ())
        assert found.delegated_nodes == found.nodes > 0
        assert (found.crossing_bytes, found.border_bytes) == (0, BORDER)
        assert violations(found) == ()
        require_strict(found, artifacts["clean", "tflite"])

    def test_a_channels_first_border_costs_a_transpose(self, report):
        found = report("clean", "nchw")
        assert [(each.where, each.asked, each.count) for each in found.transposes] == [("border", False, 1)]
        assert violations(found) == (
            "TRANSPOSE before 'stem.0' moves an activation of 1×28×24×3 at the border.",
        )  # fmt: skip

    def test_a_border_that_cannot_be_channels_last_is_counted_and_lets_pass(self, report):
        """ExecuTorch's programs are as the network has it; XNNPACK turns the image round inside."""
        found = report("clean", "pte")
        assert (found.partitions, found.fallbacks) == (1, ())
        assert found.delegated_nodes == found.nodes > 0
        assert [each.where for each in found.transposes] == ["border"]
        assert violations(found) == ()

    @pytest.mark.parametrize(
        ("format", "kind", "delegate"),
        [
            ("tflite", "ATAN2", "XNNPACK"),
            ("pte", "aten::atan", "XNNPACK"),
            ("pte-vulkan", "aten::atan", "Vulkan"),
        ],
    )
    def test_an_operator_that_no_delegate_takes(self, report, artifacts, format, kind, delegate):
        found = report("twisted", format)
        assert found.delegate == delegate
        assert found.fallbacks == (Fallback(kind, "blocks.middle", 1),)
        assert (found.partitions, found.nodes - found.delegated_nodes) == (2, 1)
        assert (found.crossing_bytes, found.border_bytes) == (2 * MIDDLE, BORDER)
        assert found.time_share is None
        with pytest.raises(VerificationError) as refused:
            require_strict(found, artifacts["twisted", format])
        assert (refused.value.code, refused.value.exit_code) == ("NOT_DELEGATED", 4)
        assert f"{kind} in 'blocks.middle' is not taken by {delegate}." in refused.value.why
        assert f"{delegate} is called 2 times an inference; the limit is 1." in refused.value.why

    def test_a_fallback_in_xnnpack_s_program_costs_a_transpose_on_either_side(self, report):
        found = report("twisted", "pte")
        inside = [each for each in found.transposes if each.where == "inside"]
        assert sum(each.count for each in inside) == 2 and not any(each.asked for each in inside)

    def test_a_delegate_that_hides_its_operators_is_told_by_the_converter(self, report, artifacts):
        found = report("twisted", "pte-coreml")
        assert (found.delegate, found.partitions, found.fallbacks) == ("Core ML", 1, ())
        assert found.nodes == found.delegated_nodes >= 7
        untold = delegation(replace(artifacts["twisted", "pte-coreml"], delegation=None), sites=())
        assert (untold.partitions, untold.nodes, untold.delegated_nodes) == (1, None, None)

    def test_what_the_file_tells_is_what_the_converter_saw(self, artifacts, report):
        """Modules found by likeness alone are those that ExecuTorch's own graph has."""
        artifact = artifacts["twisted", "pte"]
        alone = delegation(replace(artifact, delegation=None), sites=sites(program("twisted")))
        assert alone.fallbacks == report("twisted", "pte").fallbacks
        assert alone.partitions == artifact.delegation["partitions"]
        crossing = sum(each["input_bytes"] + each["output_bytes"] for each in artifact.delegation["delegates"])
        assert alone.crossing_bytes + alone.border_bytes == crossing

    def test_transposes_that_a_converter_puts_in(self, report):
        (found,) = report("shifted", "tflite").transposes
        assert (found.kind, found.module, found.count, found.where) == ("TRANSPOSE", "blocks.middle", 2, "inside")
        assert not found.asked
        assert len(violations(report("shifted", "tflite"))) == 1

    def test_transposes_that_the_network_asks_for(self, report):
        found = report("normalised", "onnx")
        assert found.transposes == (
            Transposes("Transpose", "blocks.middle", 2, "inside", True, found.transposes[0].shape),
        )  # fmt: skip
        assert violations(found) == ()

    def test_onnx_runtime_runs_everything_and_other_providers_are_estimates(self, report):
        found = report("twisted", "onnx")
        assert (found.delegate, found.partitions, found.fallbacks) == ("CPU", 1, ())
        assert found.nodes < 8  # rectifiers are fused
        assert {each.delegate: each.verdict for each in found.estimates}["NNAPI"] == "maybe: it knows no Atan"
        assert all(each.delegated_nodes < each.nodes and each.partitions == 2 for each in found.estimates)

    def test_blocked_layouts_count_where_the_target_has_them(self, report):
        """A phone whose runtime reordered what it timed has the reorders counted, as far as this machine has such."""
        times = (timed("Conv", 4.0), timed("ReorderOutput", 1.0), timed(RUNTIME, 5.0))
        assert report("twisted", "onnx").transposes == ()
        assert report("twisted", "onnx", times).time_share == pytest.approx(0.5)
        kinds = {each.kind for each in report("twisted", "onnx", times).transposes}
        assert kinds == ({"ReorderOutput"} if platform.machine() in ("x86_64", "AMD64") else kinds & REORDERS)

    def test_an_ort_file_is_read_as_its_onnx_file(self, artifacts, tmp_path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "model.ort")
        options.add_session_config_entry("session.save_model_format", "ORT")
        options.log_severity_level = 3
        path = artifacts["twisted", "onnx"].path
        onnxruntime.InferenceSession(path, options, disabled_optimizers=["NchwcTransformer"])
        read, original = read_onnx(tmp_path / "model.ort"), read_onnx(path)
        assert [each.kind for each in read.operators] == [each.kind for each in original.operators]
        assert read.crossing() == original.crossing()

    def test_time_is_shared_by_what_the_runtime_calls_its_operators(self, artifacts, report):
        """The names are LiteRT's own, of the same file."""
        folder = Path(runners.__file__).parent
        script = (
            "import sys, json, numpy\nfrom profiled import open_profiled\nit = open_profiled(sys.argv[1], 'tflite')\n"
            "it.feed([numpy.zeros(shape, kind) for _, shape, kind in it.inputs])\nit.invoke()\n"
            "print(json.dumps([each['kind'] for each in it.operators()]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, artifacts["twisted", "tflite"].path],
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        kinds = json.loads(done.stdout.splitlines()[-1])
        assert {"ATAN2", CONVOLUTION} <= set(kinds)
        spent = {"ATAN2": 3.0, CONVOLUTION: 2.0}
        times = tuple(timed(kind, spent.get(kind, 1.0)) for kind in (*kinds, RUNTIME))
        found = report("twisted", "tflite", times)
        delegated = sum(spent.get(kind, 1.0) for kind in kinds) - 3.0
        assert found.time_share == pytest.approx(delegated / 10)
        assert [each.milliseconds for each in found.fallbacks] == [3.0]

    @pytest.mark.emulator
    @pytest.mark.skipif(not is_ready(), reason="the ARM64 emulator is not set up: planish targets setup pixel-4-cpu")
    def test_the_emulated_phone_places_them_as_this_machine_does(self, artifacts, report, tmp_path):
        numpy.savez(tmp_path / "one.npz", x=numpy.zeros((1, 28, 24, 3), numpy.float32))
        path, profile = artifacts["twisted", "tflite"].path, load_profile("pixel-4-cpu")
        times = explain(path, format="tflite", profile=profile, inputs=tmp_path / "one.npz")
        found = report("twisted", "tflite", times)
        assert [each.kind for each in times if each.kind.isupper()] == ["ATAN2"]
        assert 0.1 < found.time_share < 0.9
        assert found.fallbacks[0].milliseconds == pytest.approx(times[1].milliseconds)

    def test_a_changed_file_is_refused(self, artifacts):
        with pytest.raises(VerificationError) as refused:
            delegation(replace(artifacts["clean", "pte"], sha256="0" * 64), sites=())
        assert refused.value.code == "ARTIFACT_CHANGED"

    def test_a_file_that_no_runtime_takes(self, artifacts, tmp_path):
        path = tmp_path / "model.tflite"
        path.write_bytes(artifacts["clean", "pte"].path.read_bytes())
        broken = replace(artifacts["clean", "tflite"], path=path, sha256=sha256_of(path))
        with pytest.raises(VerificationError) as refused:
            delegation(broken, sites=())
        assert refused.value.code == "DELEGATION_UNREAD"

    @pytest.mark.parametrize("format", ["tflite", "onnx", "pte"])
    def test_the_record_reads_back(self, report, format):
        found = report("twisted", format)
        assert Delegation.from_json(json.loads(json.dumps(found.to_json()))) == found
        assert delegation_record(found).partitions == found.partitions

    def test_what_does_not_run_here_says_so(self, artifacts, tmp_path):
        (tmp_path / "model.mlpackage").mkdir()
        (tmp_path / "model.mlpackage" / "Manifest.json").write_text("{}")
        package = tmp_path / "model.mlpackage"
        artifact = replace(artifacts["clean", "pte"], path=package, format="coreml", sha256=sha256_of(package))
        found = delegation(artifact, sites=())
        assert not found.known and found.learned.startswith("not run here: ")
        assert violations(found) == ()


def test_sites_are_the_users_modules_in_order():
    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    shapes = ({0: batch},)
    original = torch.export.export(Plain(Twist()).eval(), (torch.zeros(2, 3, 28, 24),), dynamic_shapes=shapes)
    found = sites(original)
    assert found[2] == Site("blocks.middle", "aten.atan.default", 8 * 14 * 12, 0)
    assert [(each.module, each.macs) for each in found if each.macs] == [
        ("stem.0", 8 * 14 * 12 * 27),
        ("blocks.last.0", 16 * 7 * 6 * 72),
        ("head.2", 160),
    ]
    graph, sources = lift(original)
    lifted = Network(graph, (torch.zeros(2, 3, 28, 24),), (), sources)
    assert sites(lifted.exported()) == found


def test_limits_let_pass_what_they_say():
    found = sample(
        partitions=3,
        nodes=9,
        delegated_nodes=7,
        fallbacks=(Fallback("SIGN", "", 2, between=("stem", "")),),
        transposes=(
            Transposes("TRANSPOSE", "head", 1, "inside", False, (1, 4)),
            Transposes("TRANSPOSE", "turn", 4, "inside", True, (1, 4)),
            Transposes("TRANSPOSE", "tail", 1, "border", False, ()),
        ),
    )
    assert violations(found) == (
        "SIGN (2 times) behind 'stem' is not taken by XNNPACK.",
        "XNNPACK is called 3 times an inference; the limit is 1.",
        "TRANSPOSE in 'head' moves an activation of 1×4.",
        "TRANSPOSE in 'tail' moves an activation at the border.",
    )
    assert violations(found, Limits(partitions=3, fallbacks=2, transposes=2)) == ()
    assert len(violations(found, Limits(partitions=2, fallbacks=1, transposes=2))) == 2
    assert not any("border" in each for each in violations(replace(found, format="pte")))


def test_a_transpose_on_a_gpu_is_a_dispatch_and_no_violation():
    moved = Transposes("TRANSPOSE", "head", 1, "inside", False, (1, 4, 4, 8))
    on_cpu = sample(partitions=1, nodes=3, delegated_nodes=3, transposes=(moved,))
    assert len(violations(on_cpu)) == 1
    on_gpu = replace(on_cpu, delegate=GPU)
    assert violations(on_gpu) == ()
    left = replace(on_gpu, fallbacks=(Fallback("TRANSPOSE", "head", 1),))
    assert violations(left) == ("TRANSPOSE in 'head' is not taken by LiteRT GPU.",)
