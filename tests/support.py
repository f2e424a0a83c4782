"""Tiny models for the tests: random numbers, made in memory or saved as users' files are.

Nothing is downloaded. `RandomCheckpoint` needs no PyTorch; `save_transformers` does.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from collm.model.artifact import Artifact
from collm.model.build import build
from collm.model.families import architecture_of
from collm.model.quantize import Quantised
from collm.model.sources import open_checkpoint
from collm.model.tokenizer import TokenizerFiles

F32 = npt.NDArray[np.float32]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 300


@functools.cache
def tokenizer_json() -> str:
    """A byte-level BPE of 300 tokens, split as SmolLM's is."""
    made = Tokenizer(BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the edge answers the easy tokens and the cloud finishes the hard ones, token by token "
    made.train_from_iterator([text * 4], trainer)
    assert made.get_vocab_size() == VOCABULARY
    return str(made.to_str())


def tokenizer_files() -> TokenizerFiles:
    """The tiny tokenizer as an artifact stores it."""
    return TokenizerFiles(
        tokenizer_json=tokenizer_json(),
        chat_template=CHAT_TEMPLATE,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        bos_id=None,
        eos_ids=(2, 0),
    )


class RandomCheckpoint:
    """A Checkpoint of random float32 weights, the same for the same seed."""

    name = "random"
    norm_offset = 0.0

    def __init__(self, *, seed: int = 0, model_type: str = "llama", **changes: Any) -> None:
        self.config: dict[str, Any] = {**TINY, **changes}
        self.architecture = architecture_of(model_type, self.config, "test")
        self._seed = seed

    def has(self, name: str) -> bool:
        return not name.endswith(".bias")

    def floats(self, name: str) -> F32:
        arch = self.architecture
        random = np.random.default_rng([self._seed, *name.encode()])
        if "norm" in name:
            size = arch.head_size if name.endswith(("q_norm.weight", "k_norm.weight")) else None
            return random.normal(1, 0.2, size or arch.hidden_size).astype(np.float32)
        q_size, kv_size = arch.heads * arch.head_size, arch.kv_heads * arch.head_size
        shapes = {
            "q_proj": (q_size, arch.hidden_size),
            "k_proj": (kv_size, arch.hidden_size),
            "v_proj": (kv_size, arch.hidden_size),
            "o_proj": (arch.hidden_size, q_size),
            "gate_proj": (arch.ffn_size, arch.hidden_size),
            "up_proj": (arch.ffn_size, arch.hidden_size),
            "down_proj": (arch.hidden_size, arch.ffn_size),
        }
        tall = (arch.vocab_size, arch.hidden_size)
        return random.normal(0, 0.2, shapes.get(name.split(".")[-2], tall)).astype(np.float32)

    def quantised(self, name: str) -> Quantised | None:
        return None

    def is_quantised(self, name: str) -> bool:
        return False

    def tokenizer(self) -> TokenizerFiles:
        return tokenizer_files()

    def sha256(self) -> str:
        return f"{self._seed:064x}"


TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def random_artifact(
    out: Path, *, weights: str = "fp32", cuts: tuple[int, ...] = (1, 2), **changes: Any
) -> Artifact:
    """The artifact of a RandomCheckpoint, built once and then copied."""
    for name, content in _built(weights, cuts, json.dumps(changes)).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return Artifact(out)


@functools.cache
def _built(weights: str, cuts: tuple[int, ...], changes: str) -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "artifact"
        build(RandomCheckpoint(**json.loads(changes)), made, cuts=cuts, weights=weights)
        return tree(made)


def transformers_model(model_type: str, seed: int = 0, **changes: Any) -> Any:
    """A random Transformers model, float32, with random norms and biases too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)  # these models are too small to share
    settings = {**TINY, "initializer_range": 0.2, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **{**settings, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.normal_(0.0 if model_type == "gemma3_text" else 1.0, 0.3)
            elif name.endswith(".bias"):
                parameter.normal_(0.0, 1.0)
    return model


def save_transformers(model: Any, folder: Path) -> Path:
    """As a user has it: config.json, safetensors and the tokenizer's files."""
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    hub = Tokenizer.from_str(tokenizer_json())
    saved = PreTrainedTokenizerFast(
        tokenizer_object=hub, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    saved.chat_template = CHAT_TEMPLATE
    saved.save_pretrained(folder)
    return folder


def transformers_logits(model: Any, ids: list[int]) -> F32:
    """float32 [len(ids), vocabulary]."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0].float().numpy())


def save_random_folder(folder: Path, **changes: Any) -> Path:
    """A Hugging Face folder of random weights, written without PyTorch."""
    checkpoint = RandomCheckpoint(**changes)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", **checkpoint.config}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [] if checkpoint.architecture.tied else ["lm_head.weight"]
    for layer in range(checkpoint.architecture.layers):
        names += [f"model.layers.{layer}.self_attn.{x}_proj.weight" for x in "qkvo"]
        names += [f"model.layers.{layer}.mlp.{x}_proj.weight" for x in ("gate", "up", "down")]
        norms = ("input_layernorm", "post_attention_layernorm")
        names += [f"model.layers.{layer}.{norm}.weight" for norm in norms]
    save_file({name: checkpoint.floats(name) for name in names}, folder / "model.safetensors")
    return folder


def build_folder(source: Path, out: Path, weights: str = "fp32", **options: Any) -> Artifact:
    """`collm build` without the command line."""
    build(open_checkpoint(str(source)), out, weights=weights, **options)
    return Artifact(out)


def token_ids(seed: int, count: int) -> list[int]:
    """Random ids, none of them special."""
    ids = np.random.default_rng(seed).integers(len(SPECIAL), VOCABULARY, count)
    return [int(i) for i in ids]


def tree(folder: Path) -> Mapping[str, bytes]:
    """Every file below `folder` with its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
