"""Which operators LiteRT's GPU accelerator runs, from which of them it knows.

It asks TensorFlow Lite for the subsets of operators it knows that can run in one go, and takes the largest, of equals
the first. Whatever else it knows runs on the CPU with what it does not know, so one such operator in the middle of a
network moves half of the network.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def subsets(
    reads: Sequence[Collection[int]], writes: Sequence[Collection[int]], known: Collection[int]
) -> list[list[int]]:
    """The operators in subsets that run one after another, each wholly of known operators or of others.

    A subset begins with the first operator whose operands are there, and takes all of its kind, known or not, that can
    run before any of the other kind has to (TensorFlow Lite, graph_info.cc, PartitionGraphIntoIndependentNodeSubsets).

    Args:
        reads, writes: tensors of each operator, in the order of the file.
        known: indices of operators.
    """
    missing = {tensor for written in writes for tensor in written}
    left = list(range(len(reads)))
    found: list[list[int]] = []
    while left:
        subset: list[int] = []
        grew = True
        while grew:
            grew = False
            for index in tuple(left):
                if missing.isdisjoint(reads[index]) and (not subset or (index in known) == (subset[0] in known)):
                    subset.append(index)
                    left.remove(index)
                    missing.difference_update(writes[index])
                    grew = True
        if not subset:
            raise ValueError("its operators cannot be put in an order")
        found.append(subset)
    return found


def taken(reads: Sequence[Collection[int]], writes: Sequence[Collection[int]], known: Collection[int]) -> list[int]:
    """The operators that the accelerator takes, none where it knows none."""
    return max((each for each in subsets(reads, writes, known) if each[0] in known), key=len, default=[])
