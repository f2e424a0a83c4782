"""The graph of a draft path: chosen layers one after the other, then an exit's adapter.

Where the exit reads states at several cuts, the one at a cut is what the layers below it have
made. A path of all layers computes what the blocks do, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

from collm.model.architecture import Architecture
from collm.model.exits import ExitFile, adapter_layers, write_adapter
from collm.model.graph import GraphBuilder
from collm.model.layers import (
    LayerWeights,
    cache_inputs,
    decoder_layer,
    hidden_input,
)


def draft_graph(
    g: GraphBuilder,
    arch: Architecture,
    layers: tuple[int, ...],
    cuts: tuple[int, ...],
    read: Callable[[int], LayerWeights],
    exit_file: ExitFile | None,
    *,
    quantised: bool,
) -> None:
    """From `hidden`, the embedding's rows, to `hidden_out`, what the head's norm is given.

    layers: ascending. cuts: the model's, up to the path's own. exit_file: for the last of the
    cuts; None: the state itself.
    """
    adapters = adapter_layers(arch, exit_file) if exit_file is not None else range(0)
    x, branch = hidden_input(g, arch), ""
    if layers or adapters:
        cache_inputs(g, arch, (*layers, *adapters))
    states, first = {0: x}, 0
    for cut in cuts:
        for slot, layer in enumerate(layers):
            if first <= layer < cut:
                window = arch.layer_window[layer]
                x, branch = decoder_layer(g, arch, slot, layer, window, read(layer), x, branch)
        # At every cut the sum is made as between two blocks: fused into the norm after it, ONNX
        # Runtime rounds it otherwise.
        if branch:
            x, branch = g.op("Add", x, branch), ""
        states[cut], first = x, cut
    if exit_file is None or exit_file.kind == "identity":
        g.node("Identity", [x], ["hidden_out"])
        g.output("hidden_out", ["rows", arch.hidden_size])
        return
    if exit_file.feed:
        x = g.op("Concat", x, *(states[cut] for cut in exit_file.feed), axis=-1)
    write_adapter(g, arch, exit_file, x, quantised=quantised, first_slot=len(layers))
