"""ONNX models in operators of an older version than PyTorch's exporter writes.

onnx has a converter of its own, which leaves out attributes of some of these operators and knows no way back for others.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

# attribute that an operator has since a version, and the value that it has where it is not given; None where any may go
NEWER_ATTRIBUTES = {("Reshape", "allowzero"): (14, 0), ("Cast", "saturate"): (19, 1), ("Split", "num_outputs"): (18, None),
                    ("Resize", "keep_aspect_ratio_policy"): (18, b"stretch"), ("Resize", "antialias"): (18, 0)}
LAST = 2**63 - 1


class OpsetError(ValueError):
    """A model that has no form in operators of that version, in one sentence."""


def in_opset(model: "onnx.ModelProto", opset: int) -> "onnx.ModelProto":
    """A copy of `model` in operators of version `opset`, 13 to 17, that computes the same.

    Raises:
        OpsetError: It uses an operator that this version does not have.
    """
    import onnx

    older = onnx.ModelProto()
    older.CopyFrom(model)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in older.graph.initializer}
    constants |= {node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t) for node in older.graph.node
                  if node.op_type == "Constant" and node.attribute[0].name == "value"}
    nodes = [new for node in older.graph.node for new in rewritten(node, opset, constants, older.graph)]
    del older.graph.node[:]
    older.graph.node.extend(nodes)
    for item in older.opset_import:
        if item.domain in ("", "ai.onnx"):
            item.version = opset
    try:
        onnx.checker.check_model(older, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OpsetError(f"this generator uses an operator that opset {opset} does not have ({' '.join(str(error).split())[:150]})") from None
    return older


def rewritten(node: "onnx.NodeProto", opset: int, constants: dict[str, np.ndarray], graph: "onnx.GraphProto") -> Iterator["onnx.NodeProto"]:
    """The nodes of version `opset` in the place of one."""
    import onnx

    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    for (kind, name), (since, neutral) in NEWER_ATTRIBUTES.items():
        if node.op_type == kind and opset < since and name in attributes and neutral in (None, attributes[name]):
            drop(node, name)
    if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and opset < 18:
        if len(node.input) == 2 and node.input[1]:
            if node.input[1] not in constants:
                raise OpsetError(f"this generator's {node.op_type} is over axes that are computed, which opset {opset} cannot")
            node.attribute.append(onnx.helper.make_attribute("axes", constants[node.input[1]].tolist()))
        del node.input[1:]
        drop(node, "noop_with_empty_axes")
    if node.op_type == "Shape" and opset < 15 and {"start", "end"} & attributes.keys():
        yield from part_of_shape(node, attributes.get("start", 0), attributes.get("end", LAST), graph)
    else:
        yield node


def part_of_shape(node: "onnx.NodeProto", start: int, end: int, graph: "onnx.GraphProto") -> Iterator["onnx.NodeProto"]:
    """Sizes `start` to `end` of a tensor by a slice of all of them."""
    import onnx

    whole, starts, ends = (f"{node.output[0]}_{name}" for name in ("whole", "starts", "ends"))
    for name, value in ((starts, start), (ends, end)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], np.int64), name))
    yield onnx.helper.make_node("Shape", [node.input[0]], [whole])
    yield onnx.helper.make_node("Slice", [whole, starts, ends], [node.output[0]])


def drop(node: "onnx.NodeProto", name: str) -> None:
    """Remove an attribute, if the node has it."""
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
