"""The peer's side of `elmoe bench --against llama.cpp`: llama.cpp behind JSON lines, in a process of its own.

Run as a script, by its path, with any interpreter that has llama-cpp-python: it imports nothing of elmoe. One request
a line on standard input, one answer a line on standard output; llama.cpp's own messages go to standard error.

    {"op": "load", "model": PATH, "threads": N, "sequences": S, "cells": C, "options": {FIELD: NUMBER}}
                                            S sequences of at most C tokens; fields of llama_model_params other than
                                            llama.cpp's defaults -> version, system, threads, bytes
    {"op": "decode", "contexts": [[id]], "steps": [[id]]}
                                            contexts [B][C], then steps [N][B], one llama_decode each -> seconds [N]
    {"op": "prefill", "tokens": [id]}       one prompt, logits of its last token wanted -> seconds
    {"op": "logits", "tokens": [id]}        of the prompt's last token -> logits [V]
    {"op": "quit"}

A first answer comes unasked, once llama-cpp-python is imported. An answer with `error` says what went wrong; all but
these have `idle_seconds` since the one before and `idle_cpu_seconds`, what the process has used in that time. Between
requests it waits in a read and uses no CPU, so that it does not disturb what is measured in turn with it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

BLOCK = 256
"""llama.cpp pads the KV cache of a sequence to multiples of this."""

Item = tuple[int, int, int, bool]
"""(token, position, sequence, whether its logits are wanted)."""


class Model:
    """A loaded model and its context: llama.cpp's low-level API and own defaults, but for sizes, threads, `options`."""

    def __init__(self, api: Any, path: str, threads: int, sequences: int, cells: int, options: dict[str, int]) -> None:
        self.api = api
        api.llama_backend_init()
        model_parameters = api.llama_model_default_params()
        model_parameters.n_gpu_layers = 0
        for name, value in options.items():
            if not hasattr(model_parameters, name):
                raise RuntimeError(f"this llama.cpp has no model option {name}")
            setattr(model_parameters, name, value)
        self.model = api.llama_model_load_from_file(path.encode(), model_parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        parameters = api.llama_context_default_params()
        cells = -(-cells // BLOCK) * BLOCK
        parameters.n_ctx = sequences * cells
        parameters.n_seq_max = sequences
        parameters.n_batch = max(parameters.n_batch, cells, sequences)
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context of {sequences} x {cells} tokens")
        self.memory = api.llama_get_memory(self.context)
        self.capacity = int(parameters.n_batch)
        self.batch = api.llama_batch_init(self.capacity, 0, 1)

    def describe(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "version": self.api.__version__,
            "system": self.api.llama_print_system_info().decode(),
            "threads": self.api.llama_n_threads(self.context),
            "bytes": self.api.llama_model_size(self.model),
        }

    def decode(self, contexts: list[list[int]], steps: list[list[int]]) -> list[float]:
        """Seconds of each step; the contexts are computed before the clock runs."""
        self.api.llama_memory_clear(self.memory, True)
        items = [(token, p, s, False) for s, context in enumerate(contexts) for p, token in enumerate(context)]
        for first in range(0, len(items), self.capacity):
            self._run(items[first : first + self.capacity])
        length = len(contexts[0])
        return [
            self._run([(token, length + n, s, True) for s, token in enumerate(tokens)])
            for n, tokens in enumerate(steps)
        ]

    def prefill(self, tokens: list[int]) -> float:
        """Seconds of one prompt, which must fit n_batch: llama.cpp cuts it into its own micro-batches."""
        self.api.llama_memory_clear(self.memory, True)
        return self._run([(token, p, 0, p == len(tokens) - 1) for p, token in enumerate(tokens)])

    def logits(self, tokens: list[int]) -> list[float]:
        """Of the last token."""
        self.prefill(tokens)
        found = self.api.llama_get_logits_ith(self.context, -1)
        size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        return [float(value) for value in found[:size]]

    def _run(self, items: list[Item]) -> float:
        """Seconds of one llama_decode, logits ready to be read."""
        batch = self.batch
        batch.n_tokens = len(items)
        for i, (token, position, sequence, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        started = time.perf_counter()
        code = self.api.llama_decode(self.context, batch)
        self.api.llama_synchronize(self.context)
        seconds = time.perf_counter() - started
        if code:
            raise RuntimeError(f"llama_decode failed with code {code}")
        return seconds


def requests() -> Iterator[dict[str, Any]]:
    """From standard input, until `quit` or its end."""
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            return
        yield request


def answer(api: Any, model: Model | None, request: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
    """The model from now on, and what to say."""
    op = request.pop("op")
    if op == "load":
        model = Model(api, request.pop("model"), **request)
        return model, model.describe()
    if model is None:
        raise RuntimeError(f"{op} before load")
    if op == "decode":
        return model, {"seconds": model.decode(**request)}
    if op == "prefill":
        return model, {"seconds": model.prefill(**request)}
    if op == "logits":
        return model, {"logits": model.logits(**request)}
    raise RuntimeError(f"unknown op {op!r}")


def sender() -> Callable[[dict[str, Any]], None]:
    """Writes answers to what is standard output now; from here on, what libraries print goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(document: dict[str, Any]) -> None:
        stream.write(json.dumps(document) + "\n")
        stream.flush()

    return send


def main() -> None:
    """Answer until told to quit."""
    send = sender()
    try:
        import llama_cpp
    except ImportError as error:
        send({"error": str(error), "missing": "llama-cpp-python"})
        return
    send({"ready": "llama.cpp", "version": llama_cpp.__version__})
    model: Model | None = None
    seen, seen_cpu = time.perf_counter(), time.process_time()
    for request in requests():
        idle = {"idle_seconds": time.perf_counter() - seen, "idle_cpu_seconds": time.process_time() - seen_cpu}
        try:
            model, found = answer(llama_cpp, model, request)
        except (RuntimeError, TypeError, KeyError) as error:
            found = {"error": str(error)}
        send(found | idle)
        seen, seen_cpu = time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
