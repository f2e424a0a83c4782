"""Writing ONNX graphs whose large weights go straight to a data file beside them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from collm.model.quantize import BLOCK, Quantised

F32 = npt.NDArray[np.float32]
Shape = list[int | str]

CONTRIB = "com.microsoft"
_OPSET = 21
_IR_VERSION = 10
_PAGE = 4096
_INLINE_BYTES = 1024


class DataFile:
    """Appends arrays to a file, each on a page boundary so that it can be mapped by itself."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = path.open("wb")

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @staticmethod
    def align(offset: int) -> int:
        """The page boundary at or after `offset`."""
        return offset + -offset % _PAGE

    def append(self, array: npt.NDArray[Any]) -> tuple[int, int]:
        """Write; returns (offset, bytes)."""
        offset = self.align(self._file.tell())
        self._file.seek(offset)
        self._file.write(np.ascontiguousarray(array).data)
        return offset, array.nbytes


class GraphBuilder:
    """One graph under construction: nodes in order, names made up as needed."""

    def __init__(self, name: str, data: DataFile | None = None) -> None:
        self._name = name
        self._data = data
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._shared: dict[str, str] = {}

    def input(self, name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> str:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> None:
        """Declare the value `name` as a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def node(
        self,
        op: str,
        inputs: list[str],
        outputs: int | list[str] = 1,
        domain: str = "",
        **attrs: Any,
    ) -> list[str]:
        """Add a node; returns the names of its outputs."""
        if isinstance(outputs, int):
            outputs = [f"{op}_{len(self._nodes)}_{i}" for i in range(outputs)]
        made = helper.make_node(op, inputs, outputs, domain=domain, **attrs)
        made.name = f"{op}_{len(self._nodes)}"
        self._nodes.append(made)
        return outputs

    def op(self, op: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        """Add a node with one output; returns its name."""
        return self.node(op, list(inputs), 1, domain, **attrs)[0]

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """A weight; small ones inside the graph, large ones in the data file."""
        if self._data is None or array.nbytes <= _INLINE_BYTES:
            self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            return name
        offset, size = self._data.append(array)
        tensor = TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        entries = {"location": self._data.name, "offset": str(offset), "length": str(size)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        self._initializers.append(tensor)
        return name

    def integers(self, *values: int) -> str:
        """A shared int64 vector constant."""
        name = "ints_" + "_".join(str(v).replace("-", "m") for v in values)
        if name not in self._shared:
            self._shared[name] = self.constant(name, np.array(values, dtype=np.int64))
        return name

    def rms_norm(self, x: str, name: str, weight: F32, epsilon: float) -> str:
        """RMS norm over the last axis."""
        return self.op(
            "SimplifiedLayerNormalization", x, self.constant(name, weight), axis=-1, epsilon=epsilon
        )

    def linear(self, x: str, name: str, weight: Quantised | F32, bias: F32 | None = None) -> str:
        """x [rows, K] times the transpose of weight [N, K], plus bias [N]."""
        if isinstance(weight, Quantised):
            y = self._linear_nbits(x, name, weight)
        else:
            w = self.constant(f"{name}.weight", weight)
            y = self.op("Gemm", x, w, transB=1)
        return y if bias is None else self.op("Add", y, self.constant(f"{name}.bias", bias))

    def _linear_nbits(self, x: str, name: str, weight: Quantised) -> str:
        n, k = weight.shape
        y = self.op(
            "MatMulNBits",
            x,
            self.constant(f"{name}.q", weight.q),
            self.constant(f"{name}.scale", weight.scale.reshape(-1)),
            domain=CONTRIB,
            K=k,
            N=n,
            bits=weight.bits,
            block_size=BLOCK,
            accuracy_level=4,
        )
        if weight.offset is None:
            return y
        # w = scale·(q − 8) + offset: the offsets meet the sums of the inputs' blocks.
        key = f"sums:{x}"
        if key not in self._shared:
            blocks = self.op("Reshape", x, self.integers(0, k // BLOCK, BLOCK))
            self._shared[key] = self.op("ReduceSum", blocks, self.integers(-1), keepdims=0)
        offset = self.constant(f"{name}.offset", np.ascontiguousarray(weight.offset.T))
        return self.op("Gemm", self._shared[key], offset, y)

    def save(self, path: Path) -> None:
        """Write the graph; its weights are in the data file already."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, self._initializers
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="collm")
        model.ir_version = _IR_VERSION
        path.write_bytes(model.SerializeToString(deterministic=True))
