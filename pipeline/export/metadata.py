"""TFLite's own metadata: what an app's libraries read of inputs, normalisation and labels from the file itself.

The schema is TensorFlow Lite's `metadata_schema.fbs` (identifier M001). Its Python library wants a protobuf of years
ago, so the few tables that planish fills are written here with flatbuffers; the field numbers are the schema's. Labels
are a text file, one a line, in a ZIP archive behind the model, as the schema has it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence

import flatbuffers

from pipeline.export.artifact import TensorSpec

FIELD, IDENTIFIER, MODEL_IDENTIFIER = "TFLITE_METADATA", b"M001", b"TFL3"
LABELS_FILE, TENSOR_AXIS_LABELS = "labels.txt", 2
IMAGE_PROPERTIES, NORMALIZATION_OPTIONS = 2, 1  # of the schema's unions
COLOURS = {3: 1, 1: 2}  # channels: ColorSpaceType RGB, GRAYSCALE
ALIGNMENT = 64  # of what a model holds, so that its weights stay where a kernel may load them
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest there is: the same file every time
MODEL_FIELDS = 8  # of the schema's table Model, the last of them the signatures
VERSION, BUFFERS, METADATA = 0, 4, 6
PIXEL = 255.0  # the schema's normalisation is of pixels as they are stored

Table = Callable[[flatbuffers.Builder], int]


def with_metadata(model: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """The TFLite `model` with metadata that says what `inputs` and `outputs` say.

    The model itself is not packed again: a new root in front of it points into it, so weights keep their alignment and
    every byte of it its value.
    """
    described = _in_front(model, _metadata(inputs, outputs))
    labels = next((spec.labels for spec in outputs if spec.labels), ())
    return described + _archive({LABELS_FILE: "\n".join(labels) + "\n"}) if labels else described


# --- the metadata -------------------------------------------------------------------------------------------------


def _metadata(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    builder = flatbuffers.Builder(1024)
    subgraph = _table(
        builder,
        {2: _offsets(builder, [_tensor(builder, spec) for spec in inputs])}
        | {3: _offsets(builder, [_tensor(builder, spec) for spec in outputs])},
    )
    root = {0: builder.CreateString("model"), 3: _offsets(builder, [subgraph]), 7: builder.CreateString("1.0.0")}
    builder.Finish(_table(builder, root), IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder: flatbuffers.Builder, spec: TensorSpec) -> int:
    """TensorMetadata: name, description, dimensions, content, process units, range, files."""
    fields = {0: builder.CreateString(spec.name), 1: builder.CreateString(spec.description)}
    if spec.layout:
        fields[2] = _offsets(builder, [builder.CreateString(axis) for axis in spec.layout])
    if spec.mean is not None and spec.std is not None:
        fields[3] = _image(builder, len(spec.mean))
        options = {
            0: _floats(builder, [PIXEL * value for value in spec.mean]),
            1: _floats(builder, [PIXEL * value for value in spec.std]),
        }
        unit = _table(builder, {1: _table(builder, options)}, kinds={0: NORMALIZATION_OPTIONS})
        fields[4] = _offsets(builder, [unit])
    if spec.minimum is not None and spec.maximum is not None:
        fields[5] = _table(builder, {0: _floats(builder, [spec.maximum]), 1: _floats(builder, [spec.minimum])})
    if spec.labels:
        file = {0: builder.CreateString(LABELS_FILE), 1: builder.CreateString("the classes, one a line")}
        fields[6] = _offsets(builder, [_table(builder, file, kinds={2: TENSOR_AXIS_LABELS})])
    return _table(builder, fields)


def _image(builder: flatbuffers.Builder, channels: int) -> int:
    """Content: image properties with the colour space."""
    properties = _table(builder, {}, kinds={0: COLOURS.get(channels, 0)})
    return _table(builder, {1: properties}, kinds={0: IMAGE_PROPERTIES})


# --- the model ----------------------------------------------------------------------------------------------------


def _in_front(model: bytes, metadata: bytes) -> bytes:
    """The model with a root of its own in front, whose lists of buffers and of metadata are one entry longer."""
    from ai_edge_litert.schema_py_generated import Model

    old = Model.GetRootAs(model)
    padded = model + bytes(-len(model) % ALIGNMENT)
    builder = flatbuffers.Builder(len(padded) + len(metadata) + 4096)
    start = len(builder.Bytes) - len(padded)
    builder.Bytes[start:] = padded
    builder.head, builder.minalign = start, ALIGNMENT  # what was there counts as written: offsets are from the end
    table = old._tab

    def kept(position: int) -> int:
        return len(padded) - position

    def entries(field: int) -> list[int]:
        vector = table.Offset(4 + 2 * field)
        if not vector:
            return []
        first = table.Vector(vector)
        return [kept(table.Indirect(first + 4 * index)) for index in range(table.VectorLen(vector))]

    buffers = entries(BUFFERS)
    content = _aligned(builder, metadata)
    buffer = _table(builder, {0: content})
    name = builder.CreateString(FIELD)
    builder.StartObject(2)
    builder.PrependUint32Slot(1, len(buffers), 0)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    entry = builder.EndObject()
    fields = {BUFFERS: _offsets(builder, [*buffers, buffer]), METADATA: _offsets(builder, [*entries(METADATA), entry])}
    for field in range(1, MODEL_FIELDS):
        position = table.Offset(4 + 2 * field)
        if position and field not in fields:
            fields[field] = kept(table.Indirect(position + table.Pos))
    builder.StartObject(MODEL_FIELDS)
    for field, offset in fields.items():
        builder.PrependUOffsetTRelativeSlot(field, offset, 0)
    builder.PrependUint32Slot(VERSION, old.Version(), 0)
    builder.Finish(builder.EndObject(), MODEL_IDENTIFIER)
    return bytes(builder.Output())


def _aligned(builder: flatbuffers.Builder, content: bytes) -> int:
    """A vector of bytes that begins at a multiple of 16, as the schema asks of buffers."""
    builder.StartVector(1, len(content), 16)
    builder.head -= len(content)
    builder.Bytes[builder.head : builder.head + len(content)] = content
    return builder.EndVector()


# --- flatbuffers --------------------------------------------------------------------------------------------------


def _table(builder: flatbuffers.Builder, fields: dict[int, int], kinds: dict[int, int] | None = None) -> int:
    """A table: `fields` are offsets by number, `kinds` one-byte enumerations."""
    kinds = kinds or {}
    builder.StartObject(1 + max([*fields, *kinds], default=-1))
    for number, offset in fields.items():
        builder.PrependUOffsetTRelativeSlot(number, offset, 0)
    for number, kind in kinds.items():
        builder.PrependUint8Slot(number, kind, 0)
    return builder.EndObject()


def _offsets(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _floats(builder: flatbuffers.Builder, values: Sequence[float]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return builder.EndVector()


def _archive(files: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, ZIP_TIME), text)
    return stream.getvalue()
