"""Do the skewed checkpoints route as their profiles say? Measured by the engine against `sim/locality.py`.

    python bench/skewed_locality.py [MODEL.elmoe ...] [--requests 64] [--tokens 64]
    python bench/skewed_locality.py --markdown

The default is every model in build/models that `skewed_checkpoint.py` made. Requests (a few consecutive tokens of the
vocabulary each, from random places) are answered greedily by the engine, batched, and traced; a token's routing does
not depend on the batch that it is computed in, so one trace is replayed at all batches (`regrouped`). Compared are:

* misses per read of an LRU cache of an eighth, a quarter and half of the experts at batch 1, 4 and 16 with
  `lru_miss_rate` for the profile's weights and the reuse that it was mapped to, and with what the simulator's own rule
  for named profiles says (`Profile.miss_rate`, which knows no reuse and no size of a pass); where a pass reads more
  experts than the cache holds, also with a cache that holds a random part of the last pass (`random_part_miss`):
  `lru_miss_rate` gives popular experts a better chance there than a replay in order of number does;
* the engine's hotness rule beside it, at the same capacities;
* distinct experts of 1..16 tokens of one request and of different requests with `unique_experts`.

Writes bench/results/skewed_locality.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from elmoe.checkpoint.folder import Checkpoint
from elmoe.errors import ElmoeError
from elmoe.sim.locality import fit_reuse, lru_miss_rate, unique_across, unique_experts, unique_inside
from elmoe.sim.profile import Profile
from elmoe.trace.parquet import TraceWriter, read_trace
from elmoe.trace.replay import Policy, Stream, request_streams
from elmoe.trace.schema import routing_counts
from harness import RESULTS, markdown_table, provenance, write_result
from skewed_checkpoint import DEFAULT_FOLDER, FIELD, named, walk_prompts
from skewed_routing import Target, popularity_order, replayed_miss, target_of

NAME = "skewed_locality"
BATCHES = (1, 4, 16)
SHARES = (8, 4, 2)
"""Capacities: an eighth of the experts, a quarter, half."""
LONGEST = 16
PROMPT_TOKENS = 4


def traced(model: Path, requests: int, tokens: int, batch: int, seed: int) -> list[Stream]:
    """Routing [T, L, A] of the answers to walks from random places of the cycle."""
    engine = Engine.open(model, EngineOptions(max_batch=batch, speculation=Speculation(mode=Mode.AR)))
    prompts = walk_prompts(engine.backend.shape.vocab, requests, PROMPT_TOKENS, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        with TraceWriter(path, engine.backend.shape, engine.settings(), model.name) as writer:
            engine.recorder = writer
            engine.generate(prompts, Generation(max_tokens=tokens, ignore_eos=True))
        return list(request_streams(read_trace(path)).values())


def compare(streams: Sequence[Stream], target: Target, profile: Profile, seed: int) -> dict[str, Any]:
    """Measured beside predicted."""
    experts, layers = target.experts, streams[0].shape[1]
    shares = np.stack([target.shares[popularity_order(seed, layer, experts)] for layer in range(layers)])
    tokens = sum(len(stream) for stream in streams)
    found = routing_counts(np.concatenate(streams), experts) / tokens
    inside, across = (unique(streams, experts, LONGEST) for unique in (unique_inside, unique_across))
    run = np.arange(1, LONGEST + 1)
    return {
        "tokens": tokens,
        "popularity_correlation": float(np.corrcoef(shares.ravel(), found.ravel())[0, 1]),
        "reuse": {"measured": float(fit_reuse(found, inside).mean()), "target": target.reuse},
        "unique_inside": {
            "measured": inside.mean(axis=0).tolist(),
            "locality": unique_experts(target.shares, 1, run, target.reuse).tolist(),
        },
        "unique_across": {
            "measured": across.mean(axis=0).tolist(),
            "locality": unique_experts(target.shares, run).tolist(),
        },
        "misses": [miss_row(streams, target, profile, batch, share) for batch in BATCHES for share in SHARES],
    }


def miss_row(streams: Sequence[Stream], target: Target, profile: Profile, batch: int, share: int) -> dict[str, Any]:
    """Misses per read at one batch and capacity."""
    experts = target.experts
    capacity = experts // share
    measured = replayed_miss(streams, experts, batch, capacity, Policy.LRU)
    predicted = float(lru_miss_rate(target.shares, capacity, batch, 1, target.reuse))
    one = np.array(1.0)
    by_rule = float(profile.miss_rate(np.array(float(capacity)), batch * one, one, profile.decode_hits))
    return {
        "batch": batch,
        "capacity": capacity,
        "capacity_share": 1 / share,
        "lru": measured,
        "hotness": replayed_miss(streams, experts, batch, capacity, Policy.HOT),
        "locality": predicted,
        "ratio": measured / predicted,
        "random_part": random_part_miss(target, batch, capacity),
        "named_profile_rule": by_rule,
    }


def random_part_miss(target: Target, batch: int, capacity: int) -> float | None:
    """Misses per read where the cache holds `capacity` experts of the last pass, any of them; None where it holds more.

    Of the U experts that a pass reads, those in the last one, too, are 2 U - U2, with U2 distinct ones in both.
    """
    one, two = (float(unique_experts(target.shares, batch, tokens, target.reuse)) for tokens in (1, 2))
    return None if one <= capacity else 1 - capacity / one * (2 * one - two) / one


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a quarter of the experts cached."""
    lines: list[list[object]] = []
    for row in rows:
        for miss in row["misses"]:
            if miss["capacity_share"] == 1 / 4:
                found = [miss[name] for name in ("lru", "locality", "ratio", "random_part", "hotness")]
                cells = ["" if value is None else f"{value:.3f}" for value in found]
                lines.append([row["profile"], miss["batch"], *cells])
    columns = ["profile, a quarter cached", "batch", "LRU", "locality.py", "ratio", "random part of a pass", "hotness"]
    return markdown_table(columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="of the engine while it traces")
    parser.add_argument("--markdown", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(table(json.loads((RESULTS / f"{NAME}.json").read_text())["rows"]))
        return
    rows = []
    try:
        for model in arguments.models or sorted(DEFAULT_FOLDER.glob("*.elmoe")):
            made = Checkpoint.open(model).config
            if FIELD not in made:
                continue
            profile = named(made[FIELD]["profile"], made)
            target = target_of(profile, made["num_experts_per_tok"])
            seed = made[FIELD]["seed"]
            streams = traced(model, arguments.requests, arguments.tokens, arguments.batch, seed)
            rows.append(made[FIELD] | {"model": model.name} | compare(streams, target, profile, seed))
            print(table(rows[-1:]), flush=True)
    except ElmoeError as error:
        raise SystemExit(f"error: {error}") from None
    settings = {name: getattr(arguments, name) for name in ("requests", "tokens", "batch")}
    write_result(NAME, provenance(settings) | {"rows": rows})


if __name__ == "__main__":
    main()
