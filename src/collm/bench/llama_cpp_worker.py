"""The child process around llama.cpp: JSON lines in, JSON lines out.

Started by `collm.bench.llama_cpp`. What llama.cpp itself prints goes nowhere near the answers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

# top-k with k = 1 is the cheapest greedy sampler llama.cpp has: no softmax, no sort.
_GREEDY = {"temperature": 0, "samplers": ["top_k"], "top_k": 1}


def main() -> None:
    """Serve until standard input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import xllamacpp

    server = _server(xllamacpp, json.loads(sys.argv[1]))
    _say(out, {"system": xllamacpp.get_system_info()})
    for line in sys.stdin:
        asked = json.loads(line)
        _say(out, _forced(server, asked) if "answer" in asked else _complete(server, asked))


def _server(xllamacpp: Any, config: dict[str, Any]) -> Any:
    flash, load = xllamacpp.llama_flash_attn_type, xllamacpp.llama_load_mode
    params = xllamacpp.CommonParams()
    params.model.path = config["gguf"]
    params.n_ctx = config["context"]
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config["threads"]
    params.flash_attn_type = (
        flash.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if config["flash_attention"]
        else flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.load_mode = load.LLAMA_LOAD_MODE_MMAP if config["mmap"] else load.LLAMA_LOAD_MODE_NONE
    params.warmup = True
    params.verbosity = 0
    return xllamacpp.Server(params)


def _complete(server: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Prefill from an empty cache and decode, ends of text ignored."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = server.handle_completions(
        {
            "prompt": asked["prompt"],
            "max_tokens": asked["tokens"],
            "cache_prompt": False,
            "ignore_eos": True,
            **_GREEDY,
        }
    )
    if "timings" not in made:
        return {"error": json.dumps(made)[:300]}
    return {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "timings": made["timings"],
    }


def _forced(server: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The argmax before every token of `answer`.

    The server gives no logits of prompt tokens, so every prefix is asked for one token; all
    but its last position is in the cache, and a request costs one decode step.
    """
    argmaxes = []
    for length in range(len(asked["answer"])):
        made = server.handle_completions(
            {
                "prompt": asked["prompt"] + asked["answer"][:length],
                "max_tokens": 1,
                "cache_prompt": True,
                "logprobs": 1,
                **_GREEDY,
            }
        )
        if "choices" not in made:
            return {"error": json.dumps(made)[:300]}
        argmaxes.append(made["choices"][0]["logprobs"]["content"][0]["id"])
    return {"argmaxes": argmaxes}


def _say(out: Any, answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
