"""What do chunks between decode steps, and kept prompts, do for clients? Two questions, both arms of each in turn.

    python bench/scheduling.py [MODEL] [--rounds 5]
    python bench/scheduling.py --markdown

*A long prompt beside a stream*: one client streams; another sends a prompt of most of the context. The longest pause
of the stream, with chunks of 64 tokens between decode steps and with the whole prompt at once. *A shared beginning*:
the time to the first token of a prompt whose first part was asked before, with and without the cache of prefixes.
Writes bench/results/scheduling.json; --markdown rewrites the table of docs/server.md from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result
from http_client import Connection
from server_process import serving

NAME = "scheduling"
LONGEST = 1500
STREAMED = 300
ARMS = {
    "chunks": ("--prefill-chunk", "256", "--prefill-chunk-between", "64", "--prefix-cache-tokens", "0"),
    "whole": ("--prefill-chunk", "4096", "--prefill-chunk-between", "4096", "--prefix-cache-tokens", "0"),
    "kept": ("--prefix-cache-tokens", "65536"),
}


def prompt_of(rng: random.Random, vocab: int, count: int) -> list[int]:
    """Random token ids."""
    return [rng.randrange(3, vocab) for _ in range(count)]


async def times(url: str, prompt: list[int], tokens: int) -> list[float]:
    """When the request was sent, and when each event came."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True}
    found = [time.perf_counter()]
    async with Connection(url) as connection:
        await connection.post("/v1/completions", body | {"speculation": {"mode": "ar"}})
        async for event in connection.events():
            found += [time.perf_counter()] * bool(event["choices"])
    return found


async def beside_a_stream(url: str, vocab: int, length: int, seed: int) -> dict[str, float]:
    """Pauses of a stream while a long prompt comes in, and that prompt's time to its first token."""
    rng = random.Random(seed)
    stream = asyncio.ensure_future(times(url, prompt_of(rng, vocab, 16), STREAMED))
    await asyncio.sleep(0.1)
    long = await times(url, prompt_of(rng, vocab, length), 2)
    came = await stream
    pauses = [after - before for before, after in pairwise(came[1:])]
    return {"longest_pause_ms": 1000 * max(pauses), "median_pause_ms": 1000 * statistics.median(pauses),
            "long_prompt_ttft_ms": 1000 * (long[1] - long[0])}  # fmt: skip


async def shared(url: str, vocab: int, length: int, seed: int) -> dict[str, float]:
    """TTFT of a prompt whose beginning was asked before."""
    rng = random.Random(seed)
    beginning = prompt_of(rng, vocab, length)
    await times(url, beginning, 2)
    came = await times(url, beginning + prompt_of(rng, vocab, 20), 2)
    return {"ttft_ms": 1000 * (came[1] - came[0])}


def run(model: str, rounds: int) -> dict[str, Any]:
    """Medians over rounds; all servers are up, one is asked at a time."""
    shape = Checkpoint.open(resolve(model)).shape
    length = min(LONGEST, shape.max_context - 64)
    found: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        urls = {arm: stack.enter_context(serving(model, *options)).url for arm, options in ARMS.items()}
        for turn in range(rounds + 1):  # the first one warms
            for arm in ("chunks", "whole"):
                sample = asyncio.run(beside_a_stream(urls[arm], shape.vocab, length, turn))
                found.setdefault(f"stream, {arm}", []).append(sample)
            for arm in ("chunks", "kept"):
                found.setdefault(f"shared, {arm}", []).append(asyncio.run(shared(urls[arm], shape.vocab, length, turn)))
    medians = {
        name: {key: statistics.median(sample[key] for sample in samples[1:]) for key in samples[0]}
        for name, samples in found.items()
    }
    return {
        "model": Path(model).name.removesuffix(".elmoe"),
        "prompt_tokens": length,
        "medians": medians,
        "load_average": os.getloadavg(),
    }


def table(document: dict[str, Any]) -> str:
    """Markdown."""
    medians, length = document["medians"], document["prompt_tokens"]
    chunks, whole = medians["stream, chunks"], medians["stream, whole"]
    new, kept = medians["shared, chunks"]["ttft_ms"], medians["shared, kept"]["ttft_ms"]
    rows: list[list[object]] = [
        ["longest pause of a stream beside it, in chunks", f"{chunks['longest_pause_ms']:.1f} ms"],
        ["longest pause of a stream beside it, at once", f"{whole['longest_pause_ms']:.1f} ms"],
        ["its own first token, in chunks", f"{chunks['long_prompt_ttft_ms']:.0f} ms"],
        ["its own first token, at once", f"{whole['long_prompt_ttft_ms']:.0f} ms"],
        ["first token when all but 20 tokens were asked before, nothing kept", f"{new:.0f} ms"],
        ["first token when all but 20 tokens were asked before, kept", f"{kept:.0f} ms"],
    ]
    return markdown_table([f"a prompt of {length:,} tokens", document["model"]], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="only rewrite the table")
    arguments = parser.parse_args()
    if arguments.markdown:
        replace_block(ROOT / "docs" / "server.md", NAME, table(json.loads((RESULTS / f"{NAME}.json").read_text())))
        return
    document = provenance({"rounds": arguments.rounds}) | run(arguments.model, arguments.rounds)
    write_result(NAME, document)
    print(table(document))


if __name__ == "__main__":
    main()
