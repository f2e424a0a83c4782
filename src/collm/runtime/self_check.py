"""Does the two-row rule hold on this machine? Asked of ONNX Runtime itself, in milliseconds.

Exactness rests on it: with two or more rows a row's result is the same to the last bit, however
the rows are taken together. It was measured on some processors and one minor version of ONNX
Runtime; here it is measured anew.

Not covered: long contexts, and all the layers; `make exact` runs those.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from collm.model.artifact import Artifact
from collm.runtime.stage import Stage

_ROWS = 12
_WIDTH, _BLOCK = 256, 32


def block_difference(artifact: Artifact, threads: int = 1) -> tuple[range, float]:
    """The layers of the artifact's first block, and by how much its rows differ: 0.0 is right.

    All rows at once against two at a time. Raises ArtifactError for files that are not usable.
    """
    block = artifact.manifest.blocks[0]
    layers = range(block.first, block.last)
    stage = Stage(artifact, layers, threads=threads)
    ids = [(7 * i + 3) % artifact.architecture.vocab_size for i in range(_ROWS)]
    together, apart = stage.open(), stage.open()
    together.append_ids(ids)
    whole = together.hidden_at(layers.stop, 0)
    parts = []
    for first in range(0, _ROWS, 2):
        apart.append_ids(ids[first : first + 2])
        parts.append(apart.hidden_at(layers.stop, first))
    return layers, float(np.abs(whole - np.concatenate(parts)).max())


def kernel_difference(threads: int = 1) -> float:
    """The same of one int4 product, with no model at all."""
    random = np.random.default_rng(0)
    blocks = _WIDTH // _BLOCK
    packed = random.integers(0, 256, (_WIDTH, blocks, _BLOCK // 2), dtype=np.uint8)
    scale = random.normal(0, 0.1, _WIDTH * blocks).astype(np.float32)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "q", "scale"],
        ["y"],
        domain="com.microsoft",
        K=_WIDTH,
        N=_WIDTH,
        bits=4,
        block_size=_BLOCK,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "rows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", _WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", _WIDTH])],
        [onnx.numpy_helper.from_array(packed, "q"), onnx.numpy_helper.from_array(scale, "scale")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = random.normal(0, 1, (_ROWS, _WIDTH)).astype(np.float32)
    whole = np.asarray(session.run(["y"], {"x": x})[0])
    parts = [session.run(["y"], {"x": x[i : i + 2]})[0] for i in range(0, _ROWS, 2)]
    return float(np.abs(whole - np.concatenate([np.asarray(one) for one in parts])).max())
