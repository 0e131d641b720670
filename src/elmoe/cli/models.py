"""`elmoe convert` and `elmoe inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elmoe.checkpoint.convert import convert as convert_checkpoint
from elmoe.checkpoint.resolve import read_config, why_not_convertible
from elmoe.checkpoint.supported import supported_model
from elmoe.cli.console import Json, Model, emit_json, human_bytes, out, parse_bytes, progress_bar, say, table
from elmoe.errors import ConfigError
from elmoe.models.footprint import footprint
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
    needed = sizes.fast_bytes_needed(context * batch)
    everything = sizes.total + context * batch * sizes.kv_per_token
    budget = parse_bytes(fast_bytes)
    slots = shape.experts if budget is None else max(0, sizes.pool_slots(budget, context * batch))
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
        ("smallest fast tier (dense, KV, one token's experts)", human_bytes(needed)),
    ]
    title = f"{shape.family}: {shape.layers} layers, {shape.experts} experts, {shape.experts_per_tok} per token"
    out.print(table(title, ("part", "bytes"), rows))
    say(f"attention: {_attention(shape)}")
    if budget is not None:
        verdict = f"holds {slots} of {shape.experts} experts per layer" if budget >= needed else "is too small"
        say(f"a fast tier of {human_bytes(budget)} {verdict}")
    if reason is not None:
        say(f"cannot be converted: {reason}")


def _attention(shape: ModelShape) -> str:
    """What a person calls it."""
    if shape.latent_dim:
        cached = shape.latent_dim + shape.rope_dim
        return f"multi-head latent, {shape.heads} heads; {cached} cached elements per token and layer"
    windowed = len(shape.windowed_layers)
    layers = "1 layer sees" if windowed == 1 else f"{windowed} layers see"
    windows = f"; {layers} {shape.window} tokens" if windowed else ""
    return f"{shape.heads} heads over {shape.kv_heads} key-value heads of {shape.head_dim}{windows}"
