"""A network in half the bytes: fp16 weights and arithmetic, for GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto

from ddpm.deploy.runtime import import_onnxruntime

# Angles up to T need more than the eleven bits of fp16.
EMBEDDING = ("Sin", "Cos")


def in_half_precision(denoiser: ModelProto) -> ModelProto:
    """The network in fp16, by onnxruntime's own converter; inputs, outputs and the time's embedding stay float32."""
    import_onnxruntime()  # first, since it is what keeps onnxruntime from reporting
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    # The converter infers its own shapes; given ours, it takes a Resize's float32 scales for an fp16 value.
    for graph in _graphs(denoiser.graph):
        del graph.value_info[:]
    half = convert_float_to_float16(denoiser, keep_io_types=True, node_block_list=_embedding(denoiser.graph))
    # It casts a value anew for every node that needs it, under one name.
    nodes = list({node.output[0]: node for node in half.graph.node}.values())
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    # And between two nodes of the embedding down to fp16 and up again.
    model = OnnxModel(half)
    model.remove_cascaded_cast_nodes()
    model.remove_useless_cast_nodes()
    model.topological_sort()
    whole, *branches = _graphs(model.model.graph)
    for graph in [*branches, whole] if branches else []:
        _tidy(graph)
    return model.model


def _tidy(graph: GraphProto) -> None:
    """The same of a graph with branches, and of these: each cast once, and each node after those whose values it, or
    one of its branches, takes."""
    todo = list({node.output[0]: node for node in graph.node}.values())
    missing = {name for node in todo for name in node.output}
    ordered: list[NodeProto] = []
    while todo:
        ready = [node for node in todo if not missing & _taken(node)]
        ordered += ready
        missing -= {name for node in ready for name in node.output}
        todo = [node for node in todo if missing & {*node.output}]
    copies = [NodeProto() for _ in ordered]
    for copied, node in zip(copies, ordered, strict=True):
        copied.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def _taken(node: NodeProto) -> set[str]:
    """The values that a node takes, those of its branches among them."""
    inner = [each for attribute in node.attribute if attribute.HasField("g") for each in attribute.g.node]
    return {*node.input, *(name for each in inner for name in _taken(each))}


def _embedding(graph: GraphProto) -> list[str]:
    """Names of the nodes from the timestep to its sines and cosines."""
    nodes = [node for each in _graphs(graph) for node in each.node]
    made_by = {name: node for node in nodes for name in node.output}
    todo, found = [node for node in nodes if node.op_type in EMBEDDING], set[str]()
    while todo:
        node = todo.pop()
        found.add(node.name)
        todo += [made_by[name] for name in node.input if name in made_by]
    return sorted(found)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those in its nodes, as the branches of an If."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
