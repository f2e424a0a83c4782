"""The decoder layer and the head as ONNX graphs.

Tensors are [rows, features]: one session's consecutive positions. Attention keeps its cache
in place: `past_*` and `present_*` are bound to one buffer [1, kv_heads, capacity, head_size].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from collm.model.architecture import Architecture
from collm.model.graph import CONTRIB, GraphBuilder
from collm.model.quantize import Quantised

F32 = npt.NDArray[np.float32]
Matrix = Quantised | F32


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One decoder layer. Matrices are [outputs, inputs]; `qkv` and `gate_up` are stacked."""

    qkv: Matrix
    qkv_bias: F32 | None
    o: Matrix
    gate_up: Matrix
    down: Matrix
    norm_1: F32
    norm_2: F32
    q_norm: F32 | None = None
    k_norm: F32 | None = None
    post_norm_1: F32 | None = None
    post_norm_2: F32 | None = None


LayerReader = Callable[[int], LayerWeights]


def hidden_input(g: GraphBuilder, arch: Architecture, states: int = 1) -> str:
    """Declare the rows that a graph works on: `hidden`, float32 [rows, d * states].

    states: how many hidden states of the same position make a row, side by side.
    """
    return g.input("hidden", ["rows", arch.hidden_size * states])


def hidden_output(g: GraphBuilder, arch: Architecture, x: str, branch: str) -> None:
    """End a graph with the residual sum x + branch as `hidden_out`, float32 [rows, d]."""
    g.node("Add", [x, branch], ["hidden_out"])
    g.output("hidden_out", ["rows", arch.hidden_size])


def layer_chain(
    g: GraphBuilder,
    arch: Architecture,
    layers: range,
    read: LayerReader,
    windows: tuple[int, ...],
    x: str = "",
) -> None:
    """Inputs `hidden` and caches, then `layers` one after the other, output `hidden_out`.

    windows: sliding window per layer of the chain, 0 for the whole context. x: the value to begin
    with where it is not the input itself but was made from it.
    """
    x = x or hidden_input(g, arch)
    cache_inputs(g, arch, layers)
    branch = ""
    for slot, layer in enumerate(layers):
        x, branch = decoder_layer(g, arch, slot, layer, windows[slot], read(layer), x, branch)
    hidden_output(g, arch, x, branch)


def cache_inputs(g: GraphBuilder, arch: Architecture, layers: Iterable[int]) -> None:
    """Declare what `layers` need beside the rows and their own caches."""
    g.input("seqlens_k", [1], TensorProto.INT32)
    g.input("total_sequence_length", [], TensorProto.INT32)
    for rope in sorted({arch.layer_rope[layer] for layer in layers}):
        half = arch.ropes[rope].dims // 2
        g.input(f"cos_{rope}", ["rope_rows", half])
        g.input(f"sin_{rope}", ["rope_rows", half])


def decoder_layer(
    g: GraphBuilder,
    arch: Architecture,
    slot: int,
    layer: int,
    window: int,
    w: LayerWeights,
    x: str,
    branch: str,
) -> tuple[str, str]:
    """One layer of the kind of the model's `layer`; its cache is the graph's number `slot`.

    Returns (residual, what is still to be added to it): the sum is fused into the next norm.
    """
    p, eps = f"l{slot}", arch.norm_epsilon
    x, normed = _add_norm(g, x, branch, f"{p}.norm_1", w.norm_1, eps)
    qkv = g.linear(normed, f"{p}.qkv", w.qkv, w.qkv_bias)
    attended = _attention(g, arch, slot, layer, window, w, qkv)
    branch = g.linear(attended, f"{p}.o", w.o)
    if w.post_norm_1 is not None:
        branch = g.rms_norm(branch, f"{p}.post_norm_1", w.post_norm_1, eps)
    x, normed = _add_norm(g, x, branch, f"{p}.norm_2", w.norm_2, eps)
    branch = feed_forward(g, arch, p, normed, w.gate_up, w.down)
    if w.post_norm_2 is not None:
        branch = g.rms_norm(branch, f"{p}.post_norm_2", w.post_norm_2, eps)
    return x, branch


def feed_forward(
    g: GraphBuilder, arch: Architecture, name: str, x: str, gate_up: Matrix, down: Matrix
) -> str:
    """down(activation(gate(x)) · up(x)), after Shazeer, arXiv 2002.05202."""
    both = g.linear(x, f"{name}.gate_up", gate_up)
    gate, up = g.node("Split", [both], 2, axis=-1, num_outputs=2)
    if arch.activation == "silu":
        active = g.op("QuickGelu", gate, domain=CONTRIB, alpha=1.0)  # x·sigmoid(x) in one node
    else:
        active = g.op("Gelu", gate, approximate="tanh")
    return g.linear(g.op("Mul", active, up), f"{name}.down", down)


def _add_norm(
    g: GraphBuilder, x: str, branch: str, name: str, weight: F32, epsilon: float
) -> tuple[str, str]:
    """(x + branch, its norm)."""
    if not branch:
        return x, g.rms_norm(x, name, weight, epsilon)
    inputs = [x, branch, g.constant(name, weight)]
    outputs = [f"{name}.normed", "", "", f"{name}.sum"]
    g.node("SkipSimplifiedLayerNormalization", inputs, outputs, CONTRIB, epsilon=epsilon)
    return outputs[3], outputs[0]


def _attention(
    g: GraphBuilder,
    arch: Architecture,
    slot: int,
    layer: int,
    window: int,
    w: LayerWeights,
    qkv: str,
) -> str:
    size = arch.head_size
    q_size, kv_size = arch.heads * size, arch.kv_heads * size
    cache: list[int | str] = [1, arch.kv_heads, "capacity", size]
    past = [g.input(f"past_{kind}_{slot}", cache) for kind in ("k", "v")]
    present = [f"present_{kind}_{slot}" for kind in ("k", "v")]
    if w.q_norm is not None and w.k_norm is not None:
        sizes = g.integers(q_size, kv_size, kv_size)
        q, k, v = g.node("Split", [qkv, sizes], 3, axis=-1)
        q = _head_norm(g, q, size, q_size, f"l{slot}.q_norm", w.q_norm, arch.norm_epsilon)
        k = _head_norm(g, k, size, kv_size, f"l{slot}.k_norm", w.k_norm, arch.norm_epsilon)
        v = g.op("Reshape", v, g.integers(1, -1, kv_size))
    else:
        q, k, v = g.op("Reshape", qkv, g.integers(1, -1, q_size + 2 * kv_size)), "", ""
    rope = arch.layer_rope[layer]
    inputs = [q, k, v, *past, "seqlens_k", "total_sequence_length", f"cos_{rope}", f"sin_{rope}"]
    attended = f"l{slot}.attended"
    g.node(
        "GroupQueryAttention",
        inputs,
        [attended, *present],
        CONTRIB,
        num_heads=arch.heads,
        kv_num_heads=arch.kv_heads,
        scale=arch.attention_scale,
        do_rotary=1,
        rotary_interleaved=0,
        local_window_size=window or -1,
    )
    for name in present:
        g.output(name, cache)
    return g.op("Reshape", attended, g.integers(-1, q_size))


def _head_norm(
    g: GraphBuilder, x: str, size: int, width: int, name: str, weight: F32, epsilon: float
) -> str:
    heads = g.op("Reshape", x, g.integers(-1, width // size, size))
    normed = g.rms_norm(heads, name, weight, epsilon)
    return g.op("Reshape", normed, g.integers(1, -1, width))


def head_graph(
    g: GraphBuilder, arch: Architecture, unembedding: Matrix, *, confident: bool
) -> None:
    """Norm and unembedding.

    Inputs: hidden float32 [rows, d]; norm float32 [d]. Output: logits float32 [rows, vocabulary].
    confident: also what `confidence_graph` takes and gives. Only for heads that serve exits
    alone: every node runs at every call, whatever is asked for.
    """
    x = hidden_input(g, arch)
    norm = g.input("norm", [arch.hidden_size])
    normed = g.op("SimplifiedLayerNormalization", x, norm, axis=-1, epsilon=arch.norm_epsilon)
    logits = g.linear(normed, "unembedding", unembedding)
    g.output(logits, ["rows", "vocabulary"])
    if confident:
        _confidence(g, logits)


def confidence_graph(g: GraphBuilder) -> None:
    """What a criterion wants to know of a distribution, without copying the logits.

    Inputs: logits float32 [rows, vocabulary]; temperature float32 [1].
    Outputs, of p = softmax(logits / temperature): top_ids int64 [rows, 2], the two likeliest,
    the likeliest first; top_probs float32 [rows, 2], their p; entropy float32 [rows, 1],
    −Σ p·log p, in nats.
    """
    _confidence(g, g.input("logits", ["rows", "vocabulary"]))


def _confidence(g: GraphBuilder, logits: str) -> None:
    temperature = g.input("temperature", [1])
    top, _ = g.node("TopK", [logits, g.integers(2)], ["top", "top_ids"], axis=-1)
    scaled = g.op("Div", logits, temperature)
    # Spelt out: ONNX Runtime's ReduceLogSumExp is ten times slower than these three.
    peak = g.op("ReduceMax", scaled, g.integers(-1), keepdims=1)
    below = g.op("Sub", scaled, peak)
    share = g.op("Exp", below)
    total = g.op("ReduceSum", share, g.integers(-1), keepdims=1)
    likely = g.op("Exp", g.op("Sub", g.op("Div", top, temperature), peak))
    g.node("Div", [likely, total], ["top_probs"])
    # log p = below − log total, so −Σ p·log p = log total − Σ share·below / total.
    mean = g.op("ReduceSum", g.op("Mul", share, below), g.integers(-1), keepdims=1)
    g.node("Sub", [g.op("Log", total), g.op("Div", mean, total)], ["entropy"])
    g.output("top_ids", ["rows", 2], TensorProto.INT64)
    g.output("top_probs", ["rows", 2])
    g.output("entropy", ["rows", 1])
