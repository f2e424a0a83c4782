"""The tokenizer inside a GGUF file, rebuilt for the `tokenizers` library.

Covered: byte-level BPE (`gpt2`: SmolLM, Llama 3, Qwen) and SentencePiece BPE (`llama`: Llama 2,
Mistral, Gemma). Pre-tokenizer expressions: llama.cpp `llama-vocab.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from collm.errors import SourceError
from collm.model.tokenizer import TokenizerFiles

_CONTROL, _USER_DEFINED = 3, 4
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def gguf_tokenizer(fields: Mapping[str, Any], where: str) -> TokenizerFiles:
    """Rebuild the tokenizer from GGUF metadata. Raises SourceError for unknown kinds."""
    try:
        return _rebuild(fields, where)
    except SourceError:
        raise
    except KeyError as error:
        raise SourceError(f"{where}: the file carries no tokenizer ({error} is missing)") from None
    except Exception as error:  # noqa: BLE001 - the Rust side raises bare Exceptions
        raise SourceError(f"{where}: the file's tokenizer is malformed: {error}") from None


def _rebuild(fields: Mapping[str, Any], where: str) -> TokenizerFiles:
    kind = fields["tokenizer.ggml.model"]
    tokens: list[str] = list(fields["tokenizer.ggml.tokens"])
    types: list[int] = list(fields.get("tokenizer.ggml.token_type") or [1] * len(tokens))
    eos = int(fields["tokenizer.ggml.eos_token_id"])
    if kind == "gpt2":
        made = _byte_level(fields, tokens, where)
    elif kind == "llama":
        made = _sentencepiece(fields, tokens)
    else:
        raise SourceError(f"{where}: tokenizer {kind!r} is not supported; expected gpt2 or llama")
    special = [tokens[i] for i, type_ in enumerate(types) if type_ == _CONTROL]
    ordinary = [tokens[i] for i, type_ in enumerate(types) if type_ == _USER_DEFINED]
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    made.add_tokens([AddedToken(token, normalized=False) for token in ordinary])
    bos = int(fields.get("tokenizer.ggml.bos_token_id", eos))
    add_bos = bool(fields.get("tokenizer.ggml.add_bos_token", kind == "llama"))
    ends = [eos, *(int(fields[k]) for k in _END_KEYS if k in fields)]
    ends += [i for i, token in enumerate(tokens) if token in _END_TOKENS and types[i] == _CONTROL]
    if wrong := [i for i in (bos, *ends) if not 0 <= i < len(tokens)]:
        raise SourceError(
            f"{where}: token {wrong[0]} ends or begins texts, of {len(tokens)} tokens"
        )
    template = fields.get("tokenizer.chat_template")
    return TokenizerFiles(
        tokenizer_json=made.to_str(),
        chat_template=str(template) if template else None,
        bos_token=tokens[bos],
        eos_token=tokens[eos],
        bos_id=bos if add_bos else None,
        eos_ids=tuple(dict.fromkeys(ends)),
    )


_END_KEYS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>")


def _byte_level(fields: Mapping[str, Any], tokens: list[str], where: str) -> Tokenizer:
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    made = Tokenizer(BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pre = str(fields.get("tokenizer.ggml.pre", "default"))
    if pre == "smollm":
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    elif pre in ("default", "gpt-2"):
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif pre in ("llama-bpe", "llama3", "llama-v3", "qwen2"):
        expression = _QWEN2 if pre == "qwen2" else _LLAMA3
        split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        if pre == "qwen2":
            made.normalizer = normalizers.NFC()
    else:
        raise SourceError(f"{where}: pre-tokenizer {pre!r} is not supported")
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(fields: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """Merges are not stored: every split of a token into two tokens is one, best score first.

    As Transformers does it (`convert_slow_tokenizer.generate_merges`).
    """
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = fields["tokenizer.ggml.scores"]
    found: list[tuple[float, int, int, str, str]] = []
    for token, token_id in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[token_id], vocab[left], vocab[right], left, right))
    found.sort()
    unknown = tokens[int(fields.get("tokenizer.ggml.unknown_token_id", 0))]
    merges = [(left, right) for *_, left, right in found]
    made = Tokenizer(
        BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return made
