"""Does the server stand a quarter of an hour of everything? 16 clients, random lengths, cancellations, malformed
bodies, slow readers; then SIGTERM under load, and kill -9 and a restart.

    python bench/soak.py [MODEL] [--minutes 15] [--clients 16]
    python bench/soak.py --markdown

Every request must be answered or cleanly refused, memory must stay flat (anonymous resident bytes, the last third
against the middle third), and p50 and p99 of TTFT and TPOT are taken at the clients. Loopback only. Writes
bench/results/soak.json; --markdown rewrites the table of docs/server.md from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result
from http_client import Connection
from server_process import ServerProcess, serving

NAME = "soak"
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "house",
    "river",
    "green",
    "old",
    "small",
    "runs",
    "sees",
    "under",
    "over",
    "why",
    "number",
    "of",
    "seven",
    "and",
    "then",
    "but",
    "quick",
]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
BROKEN: tuple[Any, ...] = (
    b"{",
    b"\xff\xfe",
    b'{"messages": [' + b"[" * 5000,
    {"messages": []},
    {"messages": [{"role": "user", "content": "x"}], "temperature": -3},
    {"messages": [{"role": "user", "content": "x"}], "no_such_field": 1},
    {"messages": [{"role": "user", "content": "x"}], "model": "gpt-9"},
    {"messages": [{"role": "user", "content": "word " * 5000}]},
    {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"type": "nothing"}}}},
)  # fmt: skip
MOST_GROWTH_PERCENT = 3
WARM_MINUTES = 10
"""A shorter run is still filling the cache of prefixes in its last third."""
KINDS = {
    "stream": 40, "whole": 18, "cancel": 14, "malformed": 10, "slow": 6, "schema": 6, "logprobs": 3, "choices": 3,
}  # fmt: skip
"""Weights of what a client does next."""


@dataclass
class Tally:
    """What became of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    tokens: int = 0


def question(rng: random.Random) -> dict[str, Any]:
    """A chat of random length; a third begin alike."""
    count = int(rng.paretovariate(1.1) * 12)
    text = " ".join(rng.choice(WORDS) for _ in range(min(count, 700)))
    system = [{"role": "system", "content": "You are kind and brief, and you like dogs, cats and rivers. " * 3}]
    modes = [{"mode": "auto"}, {"mode": "sd", "width": 2, "depth": 4}, {"mode": "ar"}]
    return {
        "messages": [*(system if rng.random() < 0.33 else []), {"role": "user", "content": text}],
        "max_tokens": rng.randint(1, 160),
        "temperature": rng.choice([0, 0.7, 1.0]),
        "speculation": rng.choice(modes),
        **rng.choice([{}, {}, {"frequency_penalty": 0.5}, {"stop": ["dog"]}, {"top_p": 0.9, "top_k": 40}]),
    }


async def once(url: str, kind: str, rng: random.Random, tally: Tally) -> None:
    """One request and what it is meant to show."""
    body, started = question(rng), time.perf_counter()
    if kind == "schema":
        body |= {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
        body["max_tokens"] = 160
        body.pop("stop", None)
    body |= {"logprobs": {"logprobs": True, "top_logprobs": 5}, "choices": {"n": 3}}.get(kind, {})
    async with Connection(url) as connection:
        if kind == "malformed":
            await connection.post("/v1/chat/completions", rng.choice(BROKEN))
            expected = connection.status in (400, 404, 413, 422)
            tally.outcomes["refused as malformed" if expected else f"malformed: {connection.status}"] += 1
            if not expected:
                tally.errors.append(f"malformed body: status {connection.status}")
            return
        streams = kind in ("stream", "cancel", "slow")
        await connection.post("/v1/chat/completions", body | {"stream": True} if streams else body)
        if connection.status == 429:
            tally.outcomes["refused, queue full"] += 1
            await asyncio.sleep(min(int(connection.headers["retry-after"]), 2))
            return
        if connection.status != 200:
            tally.errors.append(f"{kind}: status {connection.status}: {await connection.document()}")
            return
        if not streams:
            document = await connection.document()
            tally.tokens += document["usage"]["completion_tokens"]
            if kind == "schema" and document["choices"][0]["finish_reason"] == "stop":
                json.loads(document["choices"][0]["message"]["content"])
        elif not await read_stream(connection, kind, rng, tally, started):
            return
    tally.outcomes["answered"] += 1


async def read_stream(connection: Connection, kind: str, rng: random.Random, tally: Tally, started: float) -> bool:
    """Read one; False if it was given up on purpose."""
    patience, first, last, chunks = rng.randint(1, 12), None, started, 0
    async for event in connection.events(0.05 if kind == "slow" else 0.0):
        if "error" in event:
            raise ConnectionError(event["error"]["message"])
        if event["choices"] and event["choices"][0]["delta"].get("content"):
            last = time.perf_counter()
            first = first or last
            chunks += 1
        if kind == "cancel" and chunks >= patience:
            tally.outcomes["cancelled by the client"] += 1
            return False
    if kind == "stream" and first is not None:
        tally.ttft.append(first - started)
        if chunks > 1:
            tally.tpot.append((last - first) / (chunks - 1))
    return True


async def client(url: str, number: int, deadline: float, tally: Tally) -> None:
    """One after the other until the time is up."""
    rng = random.Random(number)
    while time.monotonic() < deadline:
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        try:
            await once(url, kind, rng, tally)
        except (OSError, ConnectionError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            tally.errors.append(f"{kind}: {type(error).__name__}: {error}")
        if rng.random() < 0.2:
            await asyncio.sleep(rng.random() * 0.5)


async def watch(server: ServerProcess, deadline: float, samples: list[tuple[float, int]]) -> None:
    """Memory every two seconds."""
    started = time.monotonic()
    while time.monotonic() < deadline:
        samples.append((time.monotonic() - started, server.anonymous_bytes))
        await asyncio.sleep(2)


async def load(server: ServerProcess, clients: int, seconds: float) -> tuple[Tally, list[tuple[float, int]]]:
    """All clients at once."""
    tally, samples, deadline = Tally(), list[tuple[float, int]](), time.monotonic() + seconds
    working = [client(server.url, number, deadline, tally) for number in range(clients)]
    await asyncio.gather(watch(server, deadline, samples), *working)
    return tally, samples


async def terminated_under_load(server: ServerProcess, clients: int) -> dict[str, Any]:
    """SIGTERM while `clients` streams run: how many were finished."""

    async def stream() -> str:
        body = question(random.Random(1)) | {"max_tokens": 400, "ignore_eos": True, "stream": True}
        body.pop("stop", None)
        async with Connection(server.url) as connection:
            await connection.post("/v1/chat/completions", body)
            running.release()
            reasons = [e["choices"][0]["finish_reason"] async for e in connection.events() if e.get("choices")]
            return str(reasons[-1])

    running = asyncio.Semaphore(0)
    streams = [asyncio.ensure_future(stream()) for _ in range(clients)]
    for _ in range(clients):
        await running.acquire()
    os.kill(server.process.pid, signal.SIGTERM)
    reasons = await asyncio.gather(*streams, return_exceptions=True)
    code = await asyncio.to_thread(server.process.wait, 60)
    return {"streams": clients, "finished": sum(reason == "length" for reason in reasons), "exit_code": code}


async def answers(url: str) -> int:
    """Status of one small request."""
    async with Connection(url) as connection:
        await connection.post("/v1/chat/completions", question(random.Random(2)) | {"max_tokens": 4})
        return connection.status


def killed_and_restarted(model: str) -> dict[str, Any]:
    """Kill -9 in the midst of a request, then a new server."""
    with serving(model) as server:
        asyncio.run(answers(server.url))
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with serving(model) as server:
        return {"status_after_restart": asyncio.run(answers(server.url))}


def quantiles(values: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    cuts = statistics.quantiles(values, n=100)
    return {"p50_ms": 1000 * cuts[49], "p99_ms": 1000 * cuts[98]}


def run(model: str, clients: int, minutes: float) -> dict[str, Any]:
    """All of it, as a result."""
    with serving(model, "--max-queue", "64", "--prefix-cache-tokens", "16384", "--log-level", "error") as server:
        tally, samples = asyncio.run(load(server, clients, 60 * minutes))
        terminated = asyncio.run(terminated_under_load(server, clients))
    third = len(samples) // 3
    middle, end = (
        statistics.mean(size for _, size in part) for part in (samples[third : 2 * third], samples[2 * third :])
    )
    return {
        "model": model.rsplit("/", maxsplit=1)[-1],
        "clients": clients,
        "minutes": minutes,
        "load_average": os.getloadavg(),
        "requests": sum(tally.outcomes.values()) + len(tally.errors),
        "outcomes": dict(tally.outcomes),
        "errors": len(tally.errors),
        "first_errors": tally.errors[:20],
        "memory": {
            "middle_third_mb": middle / 1e6,
            "last_third_mb": end / 1e6,
            "growth_percent": 100 * (end / middle - 1),
            "samples_mb": [round(size / 1e6, 1) for _, size in samples[:: max(1, len(samples) // 60)]],
        },
        "ttft": quantiles(tally.ttft),
        "tpot": quantiles(tally.tpot),
        "sigterm": terminated,
        "sigkill": killed_and_restarted(model),
    }


def table(document: dict[str, Any]) -> str:
    """Markdown."""
    rows: list[list[object]] = [["requests", f"{document['requests']:,}"]]
    rows += [[name, f"{count:,}"] for name, count in sorted(document["outcomes"].items())]
    memory, term = document["memory"], document["sigterm"]
    rows += [
        ["errors", document["errors"]],
        ["TTFT, p50 / p99", f"{document['ttft']['p50_ms']:.0f} / {document['ttft']['p99_ms']:.0f} ms"],
        ["time between chunks, p50 / p99", f"{document['tpot']['p50_ms']:.1f} / {document['tpot']['p99_ms']:.1f} ms"],
        ["memory, middle and last third", f"{memory['middle_third_mb']:.0f} and {memory['last_third_mb']:.0f} MB"],
        ["growth of memory", f"{memory['growth_percent']:+.1f} %"],
        ["streams finished after SIGTERM", f"{term['finished']} of {term['streams']}, exit code {term['exit_code']}"],
        ["first answer after kill -9 and restart", f"status {document['sigkill']['status_after_restart']}"],
    ]
    title = f"{document['clients']} clients, {document['minutes']:g} minutes"
    return markdown_table([title, document["model"]], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--name", default=NAME)
    parser.add_argument("--markdown", action="store_true", help="only rewrite the table")
    arguments = parser.parse_args()
    if arguments.markdown:
        replace_block(ROOT / "docs" / "server.md", "soak", table(json.loads((RESULTS / f"{NAME}.json").read_text())))
        return
    document = run(arguments.model, arguments.clients, arguments.minutes)
    settings = {"clients": arguments.clients, "minutes": arguments.minutes}
    write_result(arguments.name, provenance(settings) | document)
    print(table(document))
    grown = document["memory"]["growth_percent"] > MOST_GROWTH_PERCENT and arguments.minutes >= WARM_MINUTES
    if document["errors"] or grown:
        sys.exit("the soak found something; see first_errors and memory")


if __name__ == "__main__":
    main()
