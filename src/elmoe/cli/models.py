"""`elmoe convert` and `elmoe inspect`."""

from __future__ import annotations

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
from elmoe.models.footprint import activation_bytes, footprint
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
    everything = sizes.total + context * batch * sizes.kv_per_token
    budget = parse_bytes(fast_bytes)
    tiered = budget is not None and budget < sizes.total  # else all weights are in memory
    layout = TierLayout.of(sizes) if tiered else None
    activations = activation_bytes(shape, program, *largest_pass(EngineOptions(max_batch=batch))) if tiered else 0
    tier = FastTier(sizes, budget, None, layout, activations)
    needed = tier.bytes_needed(context * batch)
    whole = slots = shape.experts
    if layout is not None:
        segments = tier.pool_size(context * batch)
        fits = tier.fits(context * batch)
        whole = min(records_per_layer(sizes, layout, segments, whole=True)) if fits else 0
        slots = records_per_layer(sizes, layout, segments, whole=False)[0] if fits else 0
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
        "fits": budget is None or budget >= needed,
        "fast_bytes": budget,
        "fast_bytes_needed": needed,
        "activation_bytes": activations,
        "whole_experts_per_layer": whole,
        "pool_slots_per_layer": slots,
        "pool_fraction": slots / shape.experts,
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
        (f"KV cache, {batch} x {context} tokens", human_bytes(context * batch * sizes.kv_per_token)),
        ("everything", human_bytes(everything)),
        ("smallest fast tier (dense, activations, KV, one token's experts)", human_bytes(needed)),
    ]
    title = f"{shape.family}: {shape.layers} layers, {shape.experts} experts, {shape.experts_per_tok} per token"
    out.print(table(title, ("part", "bytes"), rows))
    say(f"attention: {_attention(shape)}")
    if budget is not None:
        say(f"a fast tier of {human_bytes(budget)} {_verdict(budget >= needed, tiered, whole, slots, shape.experts)}")
    if reason is not None:
        say(f"cannot be converted: {reason}")


def _verdict(fits: bool, tiered: bool, whole: int, slots: int, experts: int) -> str:
    """What a budget means."""
    if not fits:
        return "is too small"
    if not tiered:
        return "holds all weights"
    one = "1 expert" if whole == 1 else f"{whole} experts"
    return f"holds {one} of {experts} per layer, or the MSB slices of {slots}; the others are read from disk"


def _attention(shape: ModelShape) -> str:
    """What a person calls it."""
    if shape.latent_dim:
        cached = shape.latent_dim + shape.rope_dim
        return f"multi-head latent, {shape.heads} heads; {cached} cached elements per token and layer"
    windowed = len(shape.windowed_layers)
    layers = "1 layer sees" if windowed == 1 else f"{windowed} layers see"
    windows = f"; {layers} {shape.window} tokens" if windowed else ""
    return f"{shape.heads} heads over {shape.kv_heads} key-value heads of {shape.head_dim}{windows}"
