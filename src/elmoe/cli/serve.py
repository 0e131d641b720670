"""`elmoe serve`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from elmoe.cli import options as opt
from elmoe.cli.console import Json, Model, emit_json, parse_bytes
from elmoe.engine.controller import Mode
from elmoe.engine.tiered_pool import CachePolicy
from elmoe.errors import ConfigError


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    max_batch: Annotated[int, typer.Option(help="Sequences decoded together at most.")] = 16,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; more get 429.")] = 64,
    max_tokens: Annotated[int, typer.Option(help="Tokens that a request may generate.")] = 4096,
    max_body_bytes: Annotated[str, typer.Option(help="Largest request body.")] = "4MiB",
    timeout_seconds: Annotated[float, typer.Option(help="From a request's arrival to its end.")] = 600.0,
    drain_seconds: Annotated[float, typer.Option(help="Given to running requests after SIGTERM.")] = 60.0,
    prefill_chunk: Annotated[int, typer.Option(help="Prompt tokens per pass.")] = 256,
    prefill_chunk_between: Annotated[int, typer.Option(help="Likewise while others decode.")] = 64,
    prefix_cache_tokens: Annotated[int, typer.Option(help="KV cells kept for prompts to come; 0: none.")] = 16384,
    api_key_file: Annotated[Path | None, typer.Option(help="One KEY or NAME KEY per line; asks for one.")] = None,
    served_model_name: Annotated[str | None, typer.Option(help="What clients call the model.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    mode: opt.ModeOption = Mode.AUTO,
    width: opt.Width = 2,
    depth: opt.Depth = 4,
    verify: opt.Verify = None,
    draft_bits: opt.DraftBits = 4,
    draft_experts: opt.DraftExperts = None,
    pool_fraction: opt.PoolFraction = None,
    fast_bytes: opt.FastBytes = None,
    cache_policy: opt.CachePolicyOption = CachePolicy.BENEFIT,
    backend: opt.BackendName = "cpu",
    json: Json = False,
) -> None:
    """Serve a model: OpenAI-compatible API, chat page at /, /metrics, /health."""
    from elmoe.server.logs import LEVELS, set_up
    from elmoe.server.options import ApiKeys, ServerOptions
    from elmoe.server.serve import serve as run_server

    if log_level not in LEVELS:
        raise ConfigError(f"--log-level must be one of {', '.join(LEVELS)}, not {log_level!r}")
    options = ServerOptions(
        host=host,
        port=port,
        model_name=served_model_name or model_name(model),
        keys=ApiKeys.read(api_key_file) if api_key_file else None,
        max_queue=max_queue,
        max_tokens=max_tokens,
        max_body_bytes=parse_bytes(max_body_bytes) or 0,
        timeout_seconds=timeout_seconds,
        drain_seconds=drain_seconds,
    )
    settings = opt.speculation(mode, width, depth, verify, draft_bits, draft_experts)
    engine_options = replace(
        opt.engine_options(settings, pool_fraction, fast_bytes, max_batch, backend, cache_policy),
        prefill_chunk=prefill_chunk,
        prefill_chunk_between=prefill_chunk_between,
        prefix_cache_tokens=prefix_cache_tokens,
    )
    set_up(log_level)
    run_server(opt.open_engine(model, engine_options), options, _print_address if json else None)


def _print_address(address: dict[str, Any]) -> None:
    emit_json(address)
    sys.stdout.flush()


def model_name(model: str) -> str:
    """`path/to/my-model.elmoe` -> `my-model`."""
    name = Path(model).name
    for ending in (".elmoe", ".gguf"):
        name = name.removesuffix(ending)
    return name or model
