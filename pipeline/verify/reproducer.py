"""The smallest thing that shows what an artifact gets wrong: a part of the network, its input, both results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import fx

from pipeline.export.artifact import Artifact
from pipeline.model.ingest import export_program
from pipeline.model.network import Network
from pipeline.verify.correspondence import Correspondence, Found, distance
from pipeline.verify.parts import part
from targets.errors import UsageError

VALUES, PROGRAM, README = "values.npz", "block.pt2", "README.txt"

_TEXT = """{module} in {artifact} ({format}, SHA-256 {sha256}).

{values} holds one sample of what goes into this part of the network ({inputs}), taken from inside the artifact,
what PyTorch makes of it (expected, {shape}) and what the artifact made of it (given).

operators: {operators}
source: {source}
relative RMSE: {error:.3g}
largest difference: {largest:.4g}, where expected is at most {peak:.4g}
versions: {versions}
"""

_COMMAND = """
{program} is this part as an exported program. In this folder:

python - <<END
import numpy, torch
values = numpy.load("{values}")
block = torch.export.load("{program}").module()
result = block({arguments})
print("expected:", abs(result.detach().numpy() - values["expected"]).max(), "off")
print("given:   ", abs(result.detach().numpy() - values["given"]).max(), "off")
END
"""


def write(
    folder: Path, artifact: Artifact, network: Network, found: Found, correspondence: Correspondence, module: str
) -> None:
    """Writes `values.npz`, `README.txt` and, where the part can be exported alone, `block.pt2`.

    Args:
        found: the value that is wrong by itself.
        correspondence: where it was found.
        module: what the user calls it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inside, right = correspondence.between(found.node), correspondence.expected(found.node)
    sample = max(range(len(right)), key=lambda index: distance(found.taken[index], right[index]))
    expected, given = right[sample], found.taken[sample]
    alone, sources = part(network, inside)
    inputs = [correspondence.value(node)[sample] for node in sources]
    names = [f"input_{index}" for index in range(len(inputs))]
    arrays = {**dict(zip(names, inputs)), "expected": expected, "given": given}
    np.savez(folder / VALUES, **{name: array.numpy() for name, array in arrays.items()})
    difference = (given - expected).abs()
    text = _TEXT.format(
        module=module,
        artifact=artifact.path.name,
        format=artifact.format,
        sha256=artifact.sha256,
        values=VALUES,
        inputs=", ".join(f"{name} {list(value.shape)}" for name, value in zip(names, inputs)),
        shape=list(expected.shape),
        operators=", ".join(_described(network, node) for node in inside),
        source=network.sources.get(module) or "unknown",
        error=distance(given, expected),
        largest=float(difference.max()),
        peak=float(expected.abs().max()),
        versions=", ".join(f"{name} {version}" for name, version in artifact.tool_versions.items()) or "not recorded",
    )
    try:
        torch.export.save(export_program(alone, tuple(inputs), module), folder / PROGRAM)
    except UsageError as error:
        text += f"\nThis part cannot be exported alone: {error.why}\n"
    else:
        arguments = ", ".join(f'torch.from_numpy(values["{name}"])' for name in names)
        text += _COMMAND.format(program=PROGRAM, values=VALUES, arguments=arguments)
    (folder / README).write_text(text)


def _described(network: Network, node: fx.Node) -> str:
    return repr(network.layer(str(node.target))) if node.op == "call_module" else str(node.target)
