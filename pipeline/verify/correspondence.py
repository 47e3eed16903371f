"""Which value of an artifact is which value of the network, told by the values alone.

Files keep no names that can be trusted, converters fuse and transpose, and behind a wrong block every value is wrong.
So the network is followed from its input, node by node, on the artifact's own values:

1. A node is computed from what the artifact has for its inputs. Where one of the artifact's values equals the result
   up to the order of its axes, that is the node's, and what follows is computed from it. A node without an equal was
   fused into the next one.
2. Where that comes to nothing before an output is reached, something is wrong by itself. The value it gave instead is
   found by trying: each of the artifact's values left that has the size is put in the place of each node behind the
   last that was found. In the right place it makes the network compute, further on, another of the artifact's values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pipeline.model.network import Network, writes
from pipeline.verify.blocks import PRODUCTS
from pipeline.verify.tapped import Values

EQUAL = 2e-5  # relative RMSE of one operator; rounding in another order of summation leaves less than 1e-6
_ALIKE = 0.3  # the artifact's value of a node that is wrong by a little, where nothing further on can confirm it
_SUSPECTS = 40  # nodes behind the last known one that may be where the artifact goes on
_NEXT = 8  # of the artifact's values of a size, in the order of the file, that may be what it has in such a place
_FURTHER = 24  # nodes that a guess is followed for until it must have been confirmed


@dataclass(frozen=True)
class Found:
    """A node of the network and the artifact's value of it.

    Attributes:
        tensor: index in `Values.tensors`.
        taken: [N, ...] the artifact's value in the node's own layout.
        own: relative RMSE between it and what the network computes from the artifact's values before it.
    """

    node: fx.Node
    tensor: int
    taken: Tensor
    own: float


def distance(actual: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference; infinite where only one of the two is not finite."""
    finite = torch.isfinite(reference)
    if not torch.equal(finite, torch.isfinite(actual)):
        return math.inf
    if not finite.all():
        actual, reference = actual[finite], reference[finite]
    if not reference.numel():
        return 0.0
    scale = float(reference.double().square().mean().sqrt())
    error = float((actual.double() - reference.double()).square().mean().sqrt())
    return error / scale if scale else (0.0 if error == 0 else math.inf)


class Correspondence:
    """Follows `network` on `samples` [N, ...] and finds its nodes among the artifact's `values`.

    Operators that work in place are run on copies, so one whose input is read again behind it is followed wrongly.

    Attributes:
        found: what was found, by node.
    """

    def __init__(self, network: Network, samples: np.ndarray, values: Values) -> None:
        self._graph = network.graph
        self._nodes = [node for node in network.graph.graph.nodes if node.op != "output"]
        self._order = {node: index for index, node in enumerate(self._nodes)}
        self._interpreter = fx.Interpreter(network.graph, garbage_collect_values=False)
        self._tensors = [torch.from_numpy(tensor) for tensor in values.tensors]
        self._prints = [_print(tensor) for tensor in self._tensors]
        self._samples = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
        self._known: list[dict[fx.Node, object]] = [{} for _ in self._samples]
        self.found: dict[fx.Node, Found] = {}
        output = next(iter(reversed(network.graph.graph.nodes)))
        self._outputs = dict(zip(tree_leaves(output.args), values.outputs))
        with torch.no_grad():
            self._follow(0)
            while lost := [node for node in self._outputs if node not in self.found]:
                self._follow(self._order[self._resume(lost)] + 1)

    def between(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that make a found one out of those found before it, in order, itself the last."""
        inside, waiting = {node}, [node]
        while waiting:
            for source in waiting.pop().all_input_nodes:
                if source not in self.found and source.op not in ("placeholder", "get_attr") and source not in inside:
                    inside.add(source)
                    waiting.append(source)
        return sorted(inside, key=self._order.__getitem__)

    def value(self, node: fx.Node) -> Tensor:
        """[N, ...] the artifact's value of a found node or an input, else what the network computes from those."""
        return torch.stack([known[node] for known in self._known])

    def expected(self, node: fx.Node) -> Tensor:
        """[N, ...] what the network computes at a found node from the artifact's values before it."""
        rows = [dict(known) for known in self._known]
        with torch.no_grad():
            for inside, row in itertools.product(self.between(node), rows):
                row[inside] = self._compute(inside, row)
        return torch.stack([row[node] for row in rows])

    def ordered(self) -> list[Found]:
        """What was found, in the network's order."""
        return sorted(self.found.values(), key=lambda found: self.position(found.node))

    def position(self, node: fx.Node) -> int:
        return self._order[node]

    # --- step 1 ---------------------------------------------------------------------------------------------------

    def _follow(self, start: int) -> None:
        for node in self._nodes[start:]:
            if node in self.found:
                continue
            for sample, known in zip(self._samples, self._known):
                known[node] = sample[None] if node.op == "placeholder" else self._compute(node, known)
            expected = self._stacked(node, self._known)
            if expected is None or node.op in ("placeholder", "get_attr"):
                continue
            if (match := self._equal(expected, range(len(self._tensors)))) is not None:
                self._take(node, match[0], match[1], expected)

    def _compute(self, node: fx.Node, known: dict[fx.Node, object]) -> object:
        if writes(node):  # over its input, which must stay the artifact's
            known = known | {source: known[source].clone() for source in node.all_input_nodes}
        self._interpreter.env = known
        return self._interpreter.run_node(node)

    def _stacked(self, node: fx.Node, known: Sequence[dict[fx.Node, object]]) -> Tensor | None:
        """[N, ...] of a node whose values tell something: real numbers that are not all the same."""
        values = [row[node] for row in known]
        if not all(isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1 for value in values):
            return None
        stacked = torch.stack(values).float()
        return stacked if float(stacked.max()) != float(stacked.min()) else None

    def _equal(self, expected: Tensor, among: Sequence[int]) -> tuple[int, Tensor] | None:
        """The nearest value that equals `expected`, in its layout."""
        size, mean, scale = _print(expected)
        best: tuple[float, int, Tensor] | None = None
        for index in among:
            its_size, its_mean, its_scale = self._prints[index]
            if its_size != size or max(abs(its_mean - mean), abs(its_scale - scale)) > EQUAL * scale:
                continue
            for laid in _layouts(self._tensors[index], expected):
                error = distance(laid, expected)
                if error <= EQUAL and (best is None or error < best[0] / 2):
                    best = error, index, laid
        return (best[1], best[2]) if best else None

    def _take(self, node: fx.Node, tensor: int, taken: Tensor, expected: Tensor) -> None:
        taken = taken.contiguous()
        self.found[node] = Found(node, tensor, taken, distance(taken, expected))
        for known, value in zip(self._known, taken):
            known[node] = value.to(known[node].dtype)

    # --- step 2 ---------------------------------------------------------------------------------------------------

    def _resume(self, lost: list[fx.Node]) -> fx.Node:
        """Finds the value that the artifact has instead of the right one, and returns its node."""
        suspects = self._suspects(lost)
        for node in suspects[:_SUSPECTS]:
            for tensor, laid in self._guesses(node):
                if self._confirmed(node, tensor, laid):
                    node, expected = self._behind_clamps(node, laid, suspects)
                    self._take(node, tensor, laid, expected)
                    return node
        for node in suspects[:_SUSPECTS]:
            for tensor, laid in self._guesses(node):
                expected = self._stacked(node, self._known)
                if distance(laid, expected) < _ALIKE:
                    self._take(node, tensor, laid, expected)
                    return node
        # Nothing between the last right value and this output is to be recognised.
        node = lost[0]
        expected, tensor = self.value(node), self._outputs[node]
        fits = self._prints[tensor][0] == expected.numel()
        laid = next(_layouts(self._tensors[tensor], expected)) if fits else torch.full_like(expected, math.nan)
        self._take(node, tensor, laid, expected)
        return node

    def _suspects(self, lost: list[fx.Node]) -> list[fx.Node]:
        """Nodes on the way to an output that was not reached, none of whose results were found, in order."""
        wanted, waiting = set(lost), list(lost)
        while waiting:
            for source in waiting.pop().all_input_nodes:
                if source not in wanted and source not in self.found and source.op.startswith("call"):
                    wanted.add(source)
                    waiting.append(source)
        reaching: set[fx.Node] = set()  # from which something that was found follows
        for node in reversed(self._nodes):
            if any(user in self.found or user in reaching for user in node.users):
                reaching.add(node)
        return [
            node
            for node in self._nodes
            if node in wanted and node not in reaching and self._stacked(node, self._known) is not None
        ]

    def _guesses(self, node: fx.Node) -> Iterator[tuple[int, Tensor]]:
        """What may be this node's, in its layout: values like what it should be, then the next ones in the file."""
        expected = self._stacked(node, self._known)
        taken = {found.tensor for found in self.found.values()}
        before = max((self.found[source].tensor for source in self._found_before(node)), default=-1)
        left = [
            index
            for index in range(before + 1, len(self._tensors))
            if index not in taken and self._prints[index][0] == expected.numel()
        ]
        guesses = [(index, laid) for index in left for laid in _layouts(self._tensors[index], expected)]
        alike = [distance(laid, expected) < _ALIKE for _, laid in guesses]
        yield from itertools.compress(guesses, alike)
        yield from (guess for guess, seen in zip(guesses, alike) if not seen and guess[0] in left[:_NEXT])

    def _found_before(self, node: fx.Node) -> list[fx.Node]:
        return [source for inside in self.between(node) for source in inside.all_input_nodes if source in self.found]

    def _confirmed(self, node: fx.Node, tensor: int, laid: Tensor) -> bool:
        """Whether the network, going on from this value, computes another value of the artifact.

        That says something once weights or a value found before had a part in it: the ReLU of any value is likely to be
        found, and so is the norm of any. At an output it says something in any case.
        """
        trial = [dict(known) for known in self._known]
        for known, value in zip(trial, laid):
            known[node] = value
        taken = {found.tensor for found in self.found.values()}
        others = [
            index
            for index in range(tensor + 1, len(self._tensors))
            if index not in taken and not _same_numbers(self._prints[index], self._prints[tensor])
        ]
        changed, telling = {node}, set()
        for behind in self._nodes[self._order[node] + 1 :]:
            if behind in self.found or changed.isdisjoint(behind.all_input_nodes):
                continue
            for known in trial:
                known[behind] = self._compute(behind, known)
            changed.add(behind)
            sources = behind.all_input_nodes
            if self._multiplies(behind) or not telling.isdisjoint(sources) or any(s in self.found for s in sources):
                telling.add(behind)
            computed = self._stacked(behind, trial)
            if computed is None:
                continue
            if behind in telling and self._equal(computed, others) is not None:
                return True
            if behind in self._outputs and self._equal(computed, [self._outputs[behind]]) is not None:
                return True
            if len(changed) > _FURTHER:
                return False
        return False

    def _multiplies(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self._graph.get_submodule(str(node.target)), PRODUCTS)

    def _behind_clamps(self, node: fx.Node, laid: Tensor, suspects: list[fx.Node]) -> tuple[fx.Node, Tensor]:
        """The last node that leaves the value as it is: what a ReLU gave could pass for what it was given."""
        while len(node.users) == 1 and (following := next(iter(node.users))) in suspects:
            trial = [{**known, node: value} for known, value in zip(self._known, laid)]
            passed = [self._compute(following, known) for known in trial]
            if passed[0].shape != laid.shape[1:] or not torch.equal(torch.stack(passed), laid):
                break
            node = following
        return node, self._stacked(node, self._known)


def _print(tensor: Tensor) -> tuple[int, float, float]:
    """Size, mean and RMS: what no order of the axes changes."""
    numbers = tensor.double()
    return tensor.numel(), float(numbers.mean()), float(numbers.square().mean().sqrt())


def _same_numbers(one: tuple[int, float, float], other: tuple[int, float, float]) -> bool:
    return one[0] == other[0] and abs(one[1] - other[1]) <= EQUAL * one[2] and abs(one[2] - other[2]) <= EQUAL * one[2]


def _layouts(tensor: Tensor, like: Tensor) -> Iterator[Tensor]:
    """[N, ...] `tensor` in the shape of `like`, once for each order of axes that it may be stored in."""
    shape = like.shape[1:]
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    plain = [size for size in tensor.shape[1:] if size > 1]
    orders = list(itertools.permutations(axes))
    exact = [order for order in orders if [shape[axis] for axis in order] == plain]
    for order in exact or orders:
        stored = tensor.reshape(len(tensor), *(shape[axis] for axis in order))
        back = [0, *(1 + order.index(axis) for axis in axes)]
        yield stored.permute(back).reshape(like.shape)
