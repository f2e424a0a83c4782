"""The dequantised fp32 model, run by Hugging Face Transformers: what everybody is compared with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Reference:
    """A GGUF file's weights as float32, on all cores: this is not timed."""

    def __init__(self, gguf: Path) -> None:
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(os.cpu_count() or 1)
        self._torch = torch
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
        )
        self._model.eval()

    def answers(
        self, prompts: Sequence[Sequence[int]], tokens: int, eos_ids: Sequence[int]
    ) -> list[list[int]]:
        """Greedy answers of at most `tokens`, each with its end of text where it came to one."""
        torch, longest, pad = self._torch, max(map(len, prompts)), eos_ids[0]
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            made = self._model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                repetition_penalty=1.0,
                max_new_tokens=tokens,
                eos_token_id=list(eos_ids),
                pad_token_id=pad,
            )
        return [upto_end(row, eos_ids) for row in made[:, longest:].tolist()]

    def argmaxes(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """The token it would have put in the place of each of `answer`, given those before."""
        torch, first = self._torch, len(prompt) - 1
        ids = torch.tensor([[*prompt, *answer[:-1]]])
        with torch.inference_mode():
            logits = self._model(ids, use_cache=False).logits[0, first:]
        argmaxes: list[int] = logits.argmax(-1).tolist()
        return argmaxes


def upto_end(ids: Sequence[int], eos_ids: Sequence[int]) -> list[int]:
    """`ids` up to and with the first end of text."""
    ends = [i for i, token in enumerate(ids) if token in eos_ids]
    return list(ids[: ends[0] + 1]) if ends else list(ids)
