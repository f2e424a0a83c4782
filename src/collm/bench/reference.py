"""The dequantised fp32 model, run by Hugging Face Transformers: what everybody is compared with."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from collm.bench.failures import BaselineFailed


class Reference:
    """A GGUF file's weights as float32. threads: all cores unless told, as where it is not timed.

    Raises BaselineFailed where Transformers cannot read the whole model.
    """

    def __init__(self, gguf: Path, threads: int | None = None) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.set_num_threads(threads or os.cpu_count() or 1)
        self._torch = torch
        config = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        self._model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # What from_pretrained(gguf_file=…) does, less its need for the package accelerate.
        with _hidden_bar():
            read = load_gguf_checkpoint(str(gguf), return_tensors=True, model_to_load=self._model)
        missing, unknown = self._model.load_state_dict(read["tensors"], strict=False)
        self._model.tie_weights()
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        if unknown or set(missing) - tied:
            raise BaselineFailed(
                f"{gguf}: Transformers found no weights for {', '.join([*missing, *unknown])}"
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

    def streamed(
        self, prompt: Sequence[int], tokens: int, early_exit: int | None = None
    ) -> tuple[list[int], list[float]]:
        """`tokens` greedy tokens, and the seconds after which each came.

        early_exit: drafts come from so many of its layers (`assistant_early_exit`).
        """
        from transformers.generation import BaseStreamer

        made: list[int] = []
        arrivals: list[float] = []

        class Streamer(BaseStreamer):
            is_prompt = True

            def put(self, value: Any) -> None:
                if not self.is_prompt:
                    some = value.reshape(-1).tolist()
                    made.extend(some)
                    arrivals.extend([time.perf_counter() - started] * len(some))
                self.is_prompt = False

            def end(self) -> None:
                pass

        more = {} if early_exit is None else {"assistant_early_exit": early_exit}
        ids = self._torch.tensor([list(prompt)])
        started = time.perf_counter()
        with self._torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                do_sample=False,
                repetition_penalty=1.0,
                max_new_tokens=tokens,
                eos_token_id=None,
                pad_token_id=0,
                streamer=Streamer(),
                **more,
            )
        return made[:tokens], arrivals[:tokens]

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


def _hidden_bar() -> AbstractContextManager[StringIO]:
    """Transformers draws a progress bar here that no setting turns off."""
    return redirect_stderr(StringIO())
