"""Reading a Hugging Face `config.json`: what all families share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collm.errors import SourceError
from collm.model.architecture import Architecture, Rope

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def rope_from(config: Mapping[str, Any], dims: int, where: str) -> Rope:
    """The model's RoPE, from `rope_parameters` (Transformers 5) or `rope_theta`/`rope_scaling`."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = float(parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if kind == "default":
        return Rope(base=base, dims=dims)
    if kind == "linear":
        return Rope(base=base, dims=dims, scaling="linear", factor=float(parameters["factor"]))
    if kind == "llama3":
        return Rope(
            base=base,
            dims=dims,
            scaling="llama3",
            factor=float(parameters["factor"]),
            low_freq_factor=float(parameters["low_freq_factor"]),
            high_freq_factor=float(parameters["high_freq_factor"]),
            original_context=int(parameters["original_max_position_embeddings"]),
        )
    raise SourceError(
        f"{where}: RoPE scaling {kind!r} is not supported; supported are default, linear, llama3"
    )


def dense_decoder(config: Mapping[str, Any], model_type: str, **changes: Any) -> Architecture:
    """An Architecture from the fields that every dense decoder's config has.

    `changes` are the fields in which a family differs. Raises SourceError for a config that
    asks for something the graphs do not do; `architecture_of` sees to missing fields.
    """
    where = f"config of {model_type}"
    layers = int(config["num_hidden_layers"])
    hidden_size = int(config["hidden_size"])
    heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or hidden_size // heads)
    activation = str(config.get("hidden_act") or config.get("hidden_activation") or "silu")
    if activation not in _ACTIVATIONS:
        raise SourceError(f"{where}: activation {activation!r} is not supported")
    fields: dict[str, Any] = {
        "family": model_type,
        "layers": layers,
        "hidden_size": hidden_size,
        "heads": heads,
        "kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_size": head_size,
        "ffn_size": int(config["intermediate_size"]),
        "vocab_size": int(config["vocab_size"]),
        "context_length": int(config["max_position_embeddings"]),
        "norm_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "layer_rope": (0,) * layers,
        "layer_window": (0,) * layers,
        "attention_scale": head_size**-0.5,
        "activation": _ACTIVATIONS[activation],
        "tied": bool(config.get("tie_word_embeddings", False)),
    }
    fields |= changes
    if "ropes" not in fields:
        fields["ropes"] = (rope_from(config, head_size, where),)
    made = Architecture(**fields)
    if made.kv_heads < 1 or made.heads % made.kv_heads or made.head_size % 2:
        raise SourceError(f"{where}: {made.heads} heads over {made.kv_heads} KV heads do not fit")
    sizes = (made.layers, made.hidden_size, made.heads, made.head_size, made.ffn_size)
    if min(*sizes, made.vocab_size, made.context_length) < 1:
        raise SourceError(f"{where}: sizes that make no model; expected them to be positive")
    if not len(made.layer_window) == len(made.layer_rope) == made.layers:
        raise SourceError(f"{where}: layer_types does not name every one of {layers} layers")
    return made


def layer_windows(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Sliding window per layer from `layer_types`, or from the Qwen2-style switch."""
    window = config.get("sliding_window")
    types = config.get("layer_types")
    if not window:
        return (0,) * layers
    if types:
        return tuple(int(window) if kind == "sliding_attention" else 0 for kind in types)
    if "use_sliding_window" in config:
        if not config["use_sliding_window"]:
            return (0,) * layers
        first = int(config.get("max_window_layers", 0))
        return tuple(0 if layer < first else int(window) for layer in range(layers))
    return (int(window),) * layers
