"""How many tokens per second do clients get from `elmoe serve`, and from llama.cpp's server on the same Q8_0 weights.

    python bench/serving.py MODEL.elmoe ... --llama-server PATH [--rounds 5] [--clients 1,4,8,16]
    python bench/serving.py --markdown

Both servers run with the same number of threads and 16 slots; they take turns, round by round and number of clients
by number of clients, and neither uses a CPU while it waits. Every client streams one request after the other: random
token ids as a prompt, nothing of which is shared, greedy, a fixed number of new tokens. llama.cpp's server is in the
source distribution of llama-cpp-python (vendor/llama.cpp): `cmake -B build -DGGML_NATIVE=ON -DLLAMA_CURL=OFF
-DLLAMA_USE_PREBUILT_UI=OFF && cmake --build build --target llama-server`. Writes bench/results/serving.json;
--markdown rewrites the table of docs/server.md from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from elmoe.bench.gguf_q8 import cached_gguf
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result
from http_client import Connection
from server_process import START_SECONDS, serving

NAME = "serving"
SLOTS = 16
OURS, PEER = "elmoe", "llama.cpp"


@contextmanager
def llama_server(binary: str, gguf: Path, threads: int, cells: int) -> Iterator[str]:
    """The URL of a running llama-server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port), "-t", str(threads)]
    command += ["-tb", str(threads), "-np", str(SLOTS), "-c", str(SLOTS * cells), "-ngl", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_up(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise subprocess.SubprocessError(f"{binary} did not start")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _is_up(port: int) -> bool:
    import http.client

    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


async def one(url: str, prompt: list[int], tokens: int) -> tuple[float, float]:
    """(seconds to the first event, to the end) of one streamed request."""
    body = {
        "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    started, first, used = time.perf_counter(), None, {}
    async with Connection(url) as connection:
        await connection.post("/v1/completions", body)
        if connection.status != 200:
            raise ConnectionError(f"{url}: status {connection.status}: {await connection.document()}")
        async for event in connection.events():
            first = first or time.perf_counter()
            used = event.get("usage") or used
    if used.get("completion_tokens") != tokens:
        raise ConnectionError(f"{url}: {used} for {tokens} tokens")
    return (first or started) - started, time.perf_counter() - started


async def load(url: str, clients: int, requests: int, shape: tuple[int, int, int], seed: int) -> dict[str, float]:
    """Tokens per second of `clients` clients with `requests` requests each, and their median TTFT; shape: vocabulary,
    prompt tokens, new tokens.
    """
    vocab, prompt_tokens, tokens = shape
    rng = random.Random(seed)
    prompts = [
        [[rng.randrange(3, vocab) for _ in range(prompt_tokens)] for _ in range(requests)] for _ in range(clients)
    ]

    async def client(mine: list[list[int]]) -> list[tuple[float, float]]:
        return [await one(url, prompt, tokens) for prompt in mine]

    started = time.perf_counter()
    done = [pair for each in await asyncio.gather(*map(client, prompts)) for pair in each]
    seconds = time.perf_counter() - started
    return {
        "tok_s": clients * requests * tokens / seconds,
        "ttft_ms": 1000 * statistics.median(first for first, _ in done),
        "tpot_ms": 1000 * statistics.median((end - first) / (tokens - 1) for first, end in done),
    }


def measure(model: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All arms on one model, interleaved."""
    checkpoint = Checkpoint.open(resolve(model))
    shape = checkpoint.shape.vocab, arguments.prompt_tokens, arguments.tokens
    cells = -(-(arguments.prompt_tokens + arguments.tokens + 8) // 64) * 64
    counts = [int(count) for count in arguments.clients.split(",")]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        ours = stack.enter_context(serving(model, "--max-batch", str(SLOTS), "--log-level", "error"))
        gguf = cached_gguf(checkpoint)
        urls = {OURS: ours.url}
        urls[PEER] = stack.enter_context(llama_server(arguments.llama_server, gguf, arguments.threads, cells))
        for url in urls.values():
            asyncio.run(load(url, 2, 1, shape, 0))  # warm
        for turn in range(arguments.rounds):
            for clients in counts:
                order = list(urls.items())
                for arm, url in order if turn % 2 else order[::-1]:
                    sample = asyncio.run(load(url, clients, arguments.requests, shape, 1 + turn))
                    found.setdefault((arm, clients), []).append(sample)
                    print(f"{Path(model).name} round {turn} {arm} x{clients}: {sample['tok_s']:.1f} tok/s", flush=True)
    rows = []
    for (arm, clients), samples in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        middle = {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
        rows.append({"model": Path(model).name.removesuffix(".elmoe"), "arm": arm, "clients": clients, **middle})
    for row in rows:
        pairs = zip(found[row["arm"], row["clients"]], found[PEER, row["clients"]], strict=True)
        row["ratio_to_peer"] = statistics.median(mine["tok_s"] / theirs["tok_s"] for mine, theirs in pairs)
    return rows


def table(document: dict[str, Any]) -> str:
    """Markdown."""
    by = {(row["model"], row["clients"], row["arm"]): row for row in document["rows"]}
    lines: list[list[object]] = []
    for model, clients in dict.fromkeys((model, clients) for model, clients, _ in by):
        ours, peer = by[model, clients, OURS], by[model, clients, PEER]
        pair = [f"{row['tok_s']:.0f}" for row in (peer, ours)]
        times = [f"{row['ttft_ms']:.0f}" for row in (peer, ours)]
        lines.append([f"{model}, {clients} client{'s' * (clients > 1)}", *pair, f"{ours['ratio_to_peer']:.2f}", *times])
    columns = ["", "llama.cpp tok/s", "elmoe tok/s", "ratio", "llama.cpp TTFT ms", "elmoe TTFT ms"]
    return markdown_table(columns, lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--llama-server")
    parser.add_argument("--clients", default="1,4,8,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2, help="per client and round")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("ELMOE_NUM_THREADS", os.cpu_count() or 1)))
    parser.add_argument("--markdown", action="store_true", help="only rewrite the table")
    arguments = parser.parse_args()
    if arguments.markdown:
        replace_block(ROOT / "docs" / "server.md", NAME, table(json.loads((RESULTS / f"{NAME}.json").read_text())))
        return
    if not arguments.models or not arguments.llama_server:
        parser.error("models and --llama-server are needed")
    os.environ["ELMOE_NUM_THREADS"] = str(arguments.threads)
    settings = {
        name: value for name, value in vars(arguments).items() if name not in ("models", "llama_server", "markdown")
    }
    rows = [row for model in arguments.models for row in measure(model, arguments)]
    document = provenance(settings) | {"rows": rows, "load_average": os.getloadavg()}
    write_result(NAME, document)
    print(table(document))


if __name__ == "__main__":
    main()
