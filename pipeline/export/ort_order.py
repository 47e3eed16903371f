"""The same ORT file every time.

Of a model's operators, an ORT file lists which inputs and outputs share a type (`KernelTypeStrResolver`). ONNX Runtime
writes the entries in the order in which a hash table holds them, which depends on where in memory it lies; only the
list of their addresses is sorted. So here they are written once more, in the order of their names.

A flatbuffer is built from its end. ONNX Runtime writes the model first and these entries last, so everything from the
model's table on is kept byte for byte, and a new beginning is put in front of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flatbuffers

IDENTIFIER = b"ORTM"
ALIGNMENT = 64  # at least that of anything in the model; distances from the end stay as they are


def in_order(content: bytes) -> bytes:
    """The ORT file `content` with its entries about types in the order of their names."""
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import (
        InferenceSession,
        KernelTypeStrArgsEntry,
        KernelTypeStrResolver,
        OpIdKernelTypeStrArgsEntry,
    )

    session = InferenceSession.InferenceSession.GetRootAsInferenceSession(content, 0)
    resolver, model = session.KernelTypeStrResolver(), session.Model()._tab
    builder, kept = _before(content[_start(model) :])

    def operator(entry: Any) -> int:
        types = [entry.KernelTypeStrArgs(index) for index in range(entry.KernelTypeStrArgsLength())]
        written = _offsets(builder, [shared(one) for one in sorted(types, key=lambda one: one.KernelTypeStr())])
        name = builder.CreateString(entry.OpId())
        OpIdKernelTypeStrArgsEntry.Start(builder)
        OpIdKernelTypeStrArgsEntry.AddOpId(builder, name)
        OpIdKernelTypeStrArgsEntry.AddKernelTypeStrArgs(builder, written)
        return OpIdKernelTypeStrArgsEntry.End(builder)

    def shared(entry: Any) -> int:
        written = _offsets(builder, [_argument(builder, entry.Args(index)) for index in range(entry.ArgsLength())])
        name = builder.CreateString(entry.KernelTypeStr())
        KernelTypeStrArgsEntry.Start(builder)
        KernelTypeStrArgsEntry.AddKernelTypeStr(builder, name)
        KernelTypeStrArgsEntry.AddArgs(builder, written)
        return KernelTypeStrArgsEntry.End(builder)

    entries = [resolver.OpKernelTypeStrArgs(index) for index in range(resolver.OpKernelTypeStrArgsLength())]
    listed = _offsets(builder, [operator(entry) for entry in sorted(entries, key=lambda entry: entry.OpId())])
    KernelTypeStrResolver.Start(builder)
    KernelTypeStrResolver.AddOpKernelTypeStrArgs(builder, listed)
    types = KernelTypeStrResolver.End(builder)
    version = builder.CreateString(session.OrtVersion())
    InferenceSession.Start(builder)
    InferenceSession.AddOrtVersion(builder, version)
    InferenceSession.AddModel(builder, kept(model.Pos - _start(model)))
    InferenceSession.AddKernelTypeStrResolver(builder, types)
    builder.Finish(InferenceSession.End(builder), IDENTIFIER)
    return bytes(builder.Output())


def _start(model: Any) -> int:
    """Where the model's part begins: a table's description is in front of it, unless it shares that of another."""
    description = model.Pos - model.Get(flatbuffers.number_types.SOffsetTFlags, model.Pos)
    return min(model.Pos, description)


def _before(end: bytes) -> tuple[flatbuffers.Builder, Callable[[int], int]]:
    """A builder that has written `end` already, and what turns a position in it into an offset."""
    builder = flatbuffers.Builder(len(end) + 65536)
    start = len(builder.Bytes) - len(end)
    builder.Bytes[start:] = end
    builder.head, builder.minalign = start, ALIGNMENT
    return builder, lambda position: len(end) - position


def _argument(builder: flatbuffers.Builder, entry: Any) -> int:
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import ArgTypeAndIndex

    ArgTypeAndIndex.Start(builder)
    ArgTypeAndIndex.AddIndex(builder, entry.Index())
    ArgTypeAndIndex.AddArgType(builder, entry.ArgType())
    return ArgTypeAndIndex.End(builder)


def _offsets(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()
