"""Decodes plainly with a model that does not fit its memory, alone in its process: our arm of `tiers_peer.py`.

    python bench/tiers_decode.py MODEL.elmoe --fast-bytes N --batch 8 --steps 30 [--context 4] [--warm-up 2]

Prints one JSON object: decode_tok_s by the median step, seconds of every step, slow bytes as counted and as the kernel
counts them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

from cgroup import process_read_bytes
from elmoe.bench.workload import RacePlan
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.request import Generation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--fast-bytes", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--context", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options = EngineOptions(
        fast_bytes=arguments.fast_bytes,
        max_batch=arguments.batch,
        prefill_chunk=arguments.context * arguments.batch,
        speculation=Speculation(Mode.AR),
    )
    engine = Engine.open(arguments.model, options)
    plan = RacePlan((arguments.batch,), steps=arguments.steps, context=arguments.context, seed=arguments.seed)
    work = plan.decoding(engine.backend.shape, arguments.batch, 0)
    requests = [engine.submit(prompt, Generation(arguments.steps, ignore_eos=True)) for prompt in work.contexts]
    kernel, seconds = process_read_bytes(os.getpid()), []
    assert engine.backend.tiers is not None
    counted = engine.backend.tiers.counters().bytes_read
    while any(request.finish_reason is None for request in requests):
        started, before = time.perf_counter(), sum(len(request.tokens) for request in requests)
        engine.step()
        if sum(len(request.tokens) for request in requests) - before == arguments.batch:
            seconds.append(time.perf_counter() - started)
    document = {
        "decode_tok_s": arguments.batch / statistics.median(seconds[arguments.warm_up :]),
        "step_seconds": seconds,
        "counted_bytes": engine.backend.tiers.counters().bytes_read - counted,
        "kernel_bytes": process_read_bytes(os.getpid()) - kernel,
        "reader": engine.backend.tiers.reader,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
