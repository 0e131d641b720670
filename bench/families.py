"""The four 16-30B models at their real widths: one MoE layer each, converted, then decoded, drafted and verified.

    python bench/families.py [--models qwen3-30b-a3b,...] [--rounds 15] [--markdown]

Random weights (`random_checkpoint.py`), one layer (of GPT-OSS one with full attention), a vocabulary of 1024.
Milliseconds are those of the layer alone, medians over the rounds, the kinds of passes interleaved; bytes are what the
pass read of the layer's weights and KV; the reading probe runs in the same rounds. Latent attention is timed by
context, in the same rounds as the attention of transformers on the same shape in FP32, which expands its cache (needs
torch and transformers: `make verify`'s environment; left out elsewhere). Writes bench/results/families.json; with
--markdown also the tables in docs/models.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.backend.cpu import _native
from elmoe.backend.cpu.backend import CpuBackend, read_bandwidth
from elmoe.backend.protocol import DraftQuality, ForwardResult, Rows
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.engine.kv_cache import RowBuilder, SequenceCache
from harness import ROOT, markdown_table, provenance, replace_block, write_result
from random_checkpoint import write_checkpoint

MODELS = ("qwen3-30b-a3b", "glm-4.7-flash", "deepseek-v2-lite", "gpt-oss-20b")
ONE_MOE_LAYER = {
    "num_hidden_layers": 1,
    "first_k_dense_replace": 0,
    "vocab_size": 1024,
    "max_position_embeddings": 16384,
}
CONTEXT = 1024
CONTEXTS = (64, 512, 2048, 8192)
VERIFIED = 8
PAUSE_SECONDS = 0.2
"""After the peer's turn: its threads spin for a while when they are done."""
BATCH = 4
LAYER_PHASES = ("norm", "qkv", "rope", "attend", "out", "route", "gate_up", "down")
ATTENTION_PHASES = ("qkv", "rope", "attend", "out")


class OneLayer:
    """A converted one-layer model with full caches."""

    def __init__(self, name: str, folder: Path) -> None:
        text = (files("elmoe.sim") / "specs" / "models" / f"{name}.json").read_text(encoding="utf-8")
        self.name, self.config = name, json.loads(text) | ONE_MOE_LAYER
        if "layer_types" in self.config:
            self.config["layer_types"] = ["full_attention"]
        source, destination = folder / f"{name}-source", folder / f"{name}.elmoe"
        self.source_bytes = write_checkpoint(source, self.config, seed=0)
        start = time.perf_counter()
        convert(source, destination)
        self.convert_seconds = time.perf_counter() - start
        for file in source.iterdir():
            file.unlink()
        self.checkpoint = Checkpoint.open(destination)
        self.backend = CpuBackend(self.checkpoint)
        self.rng = np.random.default_rng(0)
        self.caches = [self._filled(sequence, CONTEXT) for sequence in range(BATCH)]
        program = self.checkpoint.program
        ends = (program.embedding, program.head)
        self.ends_bytes = sum(sum(linear.plane_bytes) for linear in ends)
        self.ends_msb_bytes = sum(linear.plane_bytes[0] for linear in ends)

    def _filled(self, sequence: int, context: int, cells: int | None = None) -> SequenceCache:
        """A cache with `context` committed tokens."""
        cache = SequenceCache(sequence, cells or context + 64)
        self.backend.allocate(sequence, cache.capacity)
        while cache.committed < context:
            count = min(256, context - cache.committed)
            builder = RowBuilder()
            builder.add_run(cache, self.tokens(count), want_last=False)
            self.backend.forward(builder.build())
            cache.committed += count
        return cache

    def long_cache(self, context: int, sequence: int) -> SequenceCache:
        """A cache whose later cells are copies of earlier ones: long contexts without their quadratic prefill."""
        cache = self._filled(sequence, min(context, CONTEXT), context + 64)
        while cache.committed < context:
            count = min(cache.committed, context - cache.committed)
            source = np.arange(count, dtype=np.int32)
            self.backend.move(sequence, source, source + np.int32(cache.committed))
            cache.committed += count
        return cache

    def tokens(self, count: int) -> list[int]:
        """Random ones, so that routing differs from pass to pass."""
        return self.rng.integers(0, self.backend.shape.vocab, count).tolist()

    def timed(self, rows: Rows, phases: tuple[str, ...], **options: Any) -> tuple[float, ForwardResult]:
        """Seconds in some phases of one pass."""
        before = self.backend.phase_seconds()
        result = self.backend.forward(rows, **options)
        after = self.backend.phase_seconds()
        return sum(after[phase] - before[phase] for phase in phases), result

    def decode_rows(self, count: int) -> Rows:
        """The next token of some sequences; the same cells every time."""
        builder = RowBuilder()
        for cache in self.caches[:count]:
            builder.add_run(cache, self.tokens(1), want_last=True)
        return builder.build()

    def verify_rows(self) -> Rows:
        """Consecutive tokens of one sequence, as a verified path has them."""
        builder = RowBuilder()
        builder.add_run(self.caches[0], self.tokens(VERIFIED), want_last=True)
        return builder.build()

    def half_pool(self) -> Any:
        """Every second expert."""
        shape = self.backend.shape
        return np.tile(np.arange(shape.experts) % 2 == 0, (len(shape.moe_layers), 1))

    def layer_bytes(self, result: ForwardResult, draft: bool) -> int:
        """What a pass read of the layer."""
        read = result.traffic.fast_bytes + result.traffic.slow_bytes + result.traffic.kv_bytes
        return read - (self.ends_msb_bytes if draft else self.ends_bytes)


def passes(model: OneLayer) -> dict[str, Callable[[], tuple[float, int]]]:
    """(seconds, bytes) of the layer, by kind of pass."""

    def run(rows: Callable[[], Rows], draft: bool = False) -> Callable[[], tuple[float, int]]:
        def once() -> tuple[float, int]:
            options = {"pool": model.half_pool(), "draft": DraftQuality()} if draft else {}
            seconds, result = model.timed(rows(), LAYER_PHASES, **options)
            return seconds, model.layer_bytes(result, draft)

        return once

    return {
        "AR": run(lambda: model.decode_rows(1)),
        f"AR, batch {BATCH}": run(lambda: model.decode_rows(BATCH)),
        "draft": run(lambda: model.decode_rows(1), draft=True),
        f"verify {VERIFIED}": run(model.verify_rows),
    }


def measure(model: OneLayer, rounds: int) -> list[dict[str, Any]]:
    """One row per kind of pass."""
    kinds = passes(model)
    samples: dict[str, list[tuple[float, int]]] = {kind: [] for kind in kinds}
    probes = []
    for step in range(rounds + 2):  # the first two read cold weights
        probes.append(read_bandwidth(1 << 28, 1))
        for kind, once in kinds.items():
            sample = once()
            if step >= 2:
                samples[kind].append(sample)
    probe = statistics.median(probes)
    rows = []
    for kind, taken in samples.items():
        seconds = statistics.median(sample[0] for sample in taken)
        rate = statistics.median(sample[1] / sample[0] for sample in taken) / 1e9
        rows.append(
            {
                "model": model.name,
                "pass": kind,
                "ms_per_layer": round(seconds * 1e3, 3),
                "mbytes": round(statistics.median(sample[1] for sample in taken) / 1e6, 2),
                "gb_per_s": round(rate, 2),
                "of_probe": round(rate / probe, 3),
            }
        )
    return rows


def transformers_attention(config: dict[str, Any]) -> Callable[[int], Callable[[], float]] | None:
    """Makes, for a context, what times one decode step of the attention of transformers; None without it."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return None
    import torch
    from transformers import DynamicCache, Glm4MoeLiteConfig
    from transformers.models.glm4_moe_lite.modeling_glm4_moe_lite import (
        Glm4MoeLiteAttention,
        Glm4MoeLiteRotaryEmbedding,
    )

    torch.set_num_threads(_native.threads())
    fields = {name: value for name, value in config.items() if name not in ("model_type", "first_k_dense_replace")}
    settings = Glm4MoeLiteConfig(**fields, attn_implementation="eager")
    layer = Glm4MoeLiteAttention(settings, 0).eval()
    rotary = Glm4MoeLiteRotaryEmbedding(settings)

    def at(context: int) -> Callable[[], float]:
        latents = torch.randn(1, 1, context, settings.kv_lora_rank)
        keys = torch.randn(1, 1, context, settings.qk_rope_head_dim)
        hidden, positions = torch.randn(1, 1, settings.hidden_size), torch.tensor([[context]])

        def once() -> float:
            cache = DynamicCache()
            cache.update(latents, keys, 0)
            with torch.no_grad():
                angles = rotary(hidden, positions)
                start = time.perf_counter()
                layer(hidden, position_embeddings=angles, attention_mask=None, past_key_values=cache)
                return time.perf_counter() - start

        return once

    return at


def measure_latent(model: OneLayer, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of one decode step of attention, by context."""
    theirs = transformers_attention(model.config)
    caches = {context: model.long_cache(context, 100 + i) for i, context in enumerate(CONTEXTS)}
    peers = {context: theirs(context) for context in CONTEXTS} if theirs else {}
    ours: dict[int, list[float]] = {context: [] for context in CONTEXTS}
    others: dict[int, list[float]] = {context: [] for context in CONTEXTS}
    for step in range(rounds + 3):  # the first three warm everything up
        for context in CONTEXTS:
            builder = RowBuilder()
            builder.add_run(caches[context], model.tokens(1), want_last=True)
            model.timed(builder.build(), ATTENTION_PHASES)  # wakes our threads
            seconds, _ = model.timed(builder.build(), ATTENTION_PHASES)
            peer_seconds = peers[context]() if peers else 0.0
            time.sleep(PAUSE_SECONDS if peers else 0)
            if step >= 3:
                ours[context].append(seconds)
                others[context].append(peer_seconds)
    rows = []
    for context in CONTEXTS:
        row: dict[str, Any] = {"context": context, "ms": round(statistics.median(ours[context]) * 1e3, 3)}
        if peers:
            row["transformers_ms"] = round(statistics.median(others[context]) * 1e3, 2)
            row["ratio"] = round(row["transformers_ms"] / row["ms"], 1)
        rows.append(row)
    return rows


def tables(document: dict[str, Any]) -> tuple[str, str]:
    """Markdown of both tables."""
    columns = ["model, one MoE layer", "pass", "ms", "MB read", "GB/s", "of the probe"]
    keys = ("model", "pass", "ms_per_layer", "mbytes", "gb_per_s", "of_probe")
    layers = markdown_table(columns, [[row[key] for key in keys] for row in document["layers"]])
    columns = ["cached tokens", "elmoe, ms", "transformers (FP32), ms", "ratio"]
    keys = ("context", "ms", "transformers_ms", "ratio")
    return layers, markdown_table(columns, [[row.get(key, "-") for key in keys] for row in document["latent"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    document: dict[str, Any] = {"layers": [], "latent": [], "conversions": []}
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            model = OneLayer(name, Path(folder))
            document["layers"] += measure(model, arguments.rounds)
            document["conversions"].append(
                {
                    "model": name,
                    "source_gb": round(model.source_bytes / 1e9, 3),
                    "seconds": round(model.convert_seconds, 1),
                    "gb_per_s": round(model.source_bytes / model.convert_seconds / 1e9, 3),
                }
            )
            if name == "glm-4.7-flash":
                document["latent"] = measure_latent(model, arguments.rounds)
            for row in document["layers"][-len(passes(model)) :]:
                print(row, flush=True)
            print(document["conversions"][-1], *(document["latent"] if name == "glm-4.7-flash" else ()), sep="\n")
    document = {"provenance": provenance(vars(arguments)), **document}
    print(write_result("families", document))
    if arguments.markdown:
        layers, latent = tables(document)
        replace_block(ROOT / "docs" / "models.md", "families-layers", layers)
        replace_block(ROOT / "docs" / "models.md", "families-latent", latent)


if __name__ == "__main__":
    main()
