"""`elmoe convert` and `elmoe inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from elmoe.backend.tiers import TierLayout
from elmoe.checkpoint.convert import convert as convert_checkpoint
from elmoe.checkpoint.resolve import read_config, why_not_convertible
from elmoe.checkpoint.supported import supported_model
from elmoe.cli.console import Json, Model, emit_json, human_bytes, out, parse_bytes, progress_bar, say, table
from elmoe.engine.engine import EngineOptions, largest_pass
from elmoe.engine.fast_tier import FastTier
from elmoe.engine.tiered_pool import records_per_layer
from elmoe.errors import ConfigError
from elmoe.models.footprint import Footprint, activation_bytes, footprint
from elmoe.models.shape import ModelShape


def convert(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder or GGUF file.", show_default=False)],
    destination: Annotated[Path, typer.Option("-o", "--output", help="The .elmoe folder to make.", show_default=False)],
    json: Json = False,
) -> None:
    """Convert a checkpoint to bit-nested weights (an .elmoe folder)."""
    with progress_bar("converting") as progress:
        report = convert_checkpoint(source, destination, progress)
    document = {
        "tensors": report.tensors,
        "bytes": report.bytes,
        "seconds": report.seconds,
        "source_sha256": report.source_sha256,
        "path": str(destination),
        "notes": list(report.notes),
    }
    if json:
        emit_json(document)
    else:
        say(f"{destination}: {report.tensors} tensors, {human_bytes(report.bytes)}, {report.seconds:.1f} s")


def inspect(
    model: Model,
    fast_bytes: Annotated[str | None, typer.Option(help="Budget of the fast tier, for example 8GiB.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens per sequence to plan for. Default: 1024, or the model's context.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences to plan for.")] = 1,
    json: Json = False,
) -> None:
    """Show a model's shape, its bytes by part, and what a fast-memory budget holds; reads no weights."""
    config = read_config(model)
    shape, program = supported_model(config)
    convertible, reason = why_not_convertible(model)
    sizes = footprint(shape, program)
    context = min(1024, shape.max_context) if context is None else context
    for name, value in (("context", context), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    if context > shape.max_context:
        raise ConfigError(f"context {context} is beyond the model's {shape.max_context}")
    cells = context * batch
    budget = parse_bytes(fast_bytes)
    held = _held(sizes, activation_bytes(shape, program, *largest_pass(EngineOptions(max_batch=batch))), budget, cells)
    document = {
        "family": shape.family,
        "layers": shape.layers,
        "experts": shape.experts,
        "experts_per_token": shape.experts_per_tok,
        "bytes": {
            "dense": sizes.dense,
            "experts_msb": sizes.experts_msb,
            "experts_lsb": sizes.experts_lsb,
            "scales": sizes.scales,
            "kv_per_token": sizes.kv_per_token,
            "total": sizes.total,
        },
        "fits": budget is None or budget >= held.needed,
        "fast_bytes": budget,
        "fast_bytes_needed": held.needed,
        "activation_bytes": held.activations,
        "whole_experts_per_layer": held.whole,
        "pool_slots_per_layer": held.slots,
        "pool_fraction": held.slots / shape.experts,
        "context": context,
        "batch": batch,
        "convertible": convertible,
        "reason": reason,
        "shape": shape.as_dict(),
    }
    if json:
        emit_json(document)
        return
    experts = [
        ("experts, MSB planes with scales", human_bytes(sizes.experts_msb)),
        ("experts, LSB planes", human_bytes(sizes.experts_lsb)),
    ]
    if shape.mxfp4_experts:
        experts = [("experts, MXFP4", human_bytes(sizes.experts_msb))]
    shared = "shared experts, " if shape.shared_hidden else ""
    rows = [
        (f"dense weights ({shared}attention, embedding, head, norms)", human_bytes(sizes.dense)),
        *experts,
        ("all weights", human_bytes(sizes.total)),
        (f"KV cache, {batch} x {context} tokens", human_bytes(cells * sizes.kv_per_token)),
        ("everything", human_bytes(sizes.total + cells * sizes.kv_per_token)),
        ("smallest fast tier (dense, activations, KV, one token's experts)", human_bytes(held.needed)),
    ]
    title = f"{shape.family}: {shape.layers} layers, {shape.experts} experts, {shape.experts_per_tok} per token"
    out.print(table(title, ("part", "bytes"), rows))
    say(f"attention: {_attention(shape)}")
    if budget is not None:
        say(f"a fast tier of {human_bytes(budget)} {held.verdict(budget, shape.experts)}")
    if reason is not None:
        say(f"cannot be converted: {reason}")


@dataclass(frozen=True)
class _Held:
    """What a budget of the fast tier holds."""

    needed: int
    """The smallest budget."""
    activations: int
    """Counted where experts stay on disk."""
    whole: int
    """Whole experts per layer."""
    slots: int
    """MSB records per layer, if there is nothing else."""
    tiered: bool
    """Whether experts stay on disk."""

    def verdict(self, budget: int, experts: int) -> str:
        """What a budget means."""
        if budget < self.needed:
            return "is too small"
        if not self.tiered:
            return "holds all weights"
        one = "1 expert" if self.whole == 1 else f"{self.whole} experts"
        return f"holds {one} of {experts} per layer, or the MSB slices of {self.slots}; the others are read from disk"


def _held(sizes: Footprint, activations: int, budget: int | None, cells: int) -> _Held:
    """As the engine would divide it with `cells` cells of KV."""
    if budget is None or budget >= sizes.total:
        return _Held(sizes.fast_bytes_needed(cells), 0, sizes.experts, sizes.experts, False)
    layout = TierLayout.of(sizes)
    tier = FastTier(sizes, budget, None, layout, activations)
    whole = slots = 0
    if tier.fits(cells):
        segments = tier.pool_size(cells)
        slots, _ = records_per_layer(sizes, layout, segments, whole=False)
        whole = min(records_per_layer(sizes, layout, segments, whole=True)[: layout.planes])
    return _Held(tier.bytes_needed(cells), activations, whole, slots, True)


def _attention(shape: ModelShape) -> str:
    """What a person calls it."""
    if shape.latent_dim:
        cached = shape.latent_dim + shape.rope_dim
        return f"multi-head latent, {shape.heads} heads; {cached} cached elements per token and layer"
    windowed = len(shape.windowed_layers)
    layers = "1 layer sees" if windowed == 1 else f"{windowed} layers see"
    windows = f"; {layers} {shape.window} tokens" if windowed else ""
    return f"{shape.heads} heads over {shape.kv_heads} key-value heads of {shape.head_dim}{windows}"
