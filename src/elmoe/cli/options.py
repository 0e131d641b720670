"""The options of generation, shared by `run` and `trace`, and what they build."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from elmoe.backend.protocol import DraftQuality
from elmoe.cli.console import err, parse_bytes, progress_bar, say
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.sampler import Sampling
from elmoe.engine.tiered_pool import CachePolicy

Texts = Annotated[list[str] | None, typer.Option("-p", "--prompt", help="A prompt; may be repeated.")]
TokenLists = Annotated[
    list[str] | None,
    typer.Option("--tokens", metavar="IDS", help="A prompt as token ids, for example 1,2,3; may be repeated."),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="JSONL file of prompts ({'prompt'}, {'turns'} or {'token_ids'}), or chat, math, instructions, code.",
    ),
]
MaxTokens = Annotated[int, typer.Option(help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling; 1 is off.")]
TopK = Annotated[int, typer.Option(help="Sample among the best k; 0 is off.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the best one; 0 is off.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text, in every mode. Random by default.")]
ModeOption = Annotated[Mode, typer.Option(help="Plain decoding, Elastic-SD, or the controller's choice.")]
Width = Annotated[int, typer.Option(help="Draft nodes expanded per level.")]
Depth = Annotated[int, typer.Option(help="Draft levels per step; 0 is plain decoding.")]
Verify = Annotated[int | None, typer.Option(help="Draft tokens verified per step. Default: width x depth.")]
DraftBits = Annotated[int, typer.Option(help="Weight bits of the draft, 2 to 7; 8 for the expert axis alone.")]
DraftExperts = Annotated[int | None, typer.Option(help="Experts per token in the draft. Default: the model's own.")]
PoolFraction = Annotated[float | None, typer.Option(help="Share of experts in the fast tier. Default 0.5.")]
FastBytes = Annotated[
    str | None,
    typer.Option(
        help="Memory for the model, for example 8GiB; what does not fit stays on disk. Default: what is free."
    ),
]
CachePolicyOption = Annotated[
    CachePolicy, typer.Option("--cache-policy", help="Which experts stay in memory where not all fit.")
]
Batch = Annotated[int, typer.Option(help="Sequences decoded together at most.")]
BackendName = Annotated[str, typer.Option("--backend", help="cpu (C++), or reference (NumPy: slow).")]
Chat = Annotated[bool | None, typer.Option("--chat/--raw", help="Default: chat where the model has a template.")]
TemplateVariables = Annotated[
    list[str] | None,
    typer.Option(
        "--template-var",
        metavar="NAME=VALUE",
        help="For the chat template, for example enable_thinking=false; JSON or a text; may be repeated.",
    ),
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after a stop token.")]


def speculation(
    mode: Mode, width: int, depth: int, verify: int | None, draft_bits: int, draft_experts: int | None
) -> Speculation:
    """Validated settings of Elastic-SD."""
    return Speculation(
        mode=mode,
        width=width,
        depth=depth,
        verify=max(width * depth, 1) if verify is None else verify,
        quality=DraftQuality(bits=draft_bits, experts_per_tok=draft_experts),
    )


def sampling(temperature: float, top_p: float, top_k: int, min_p: float, seed: int | None) -> Sampling:
    """Validated sampling settings; a random seed is chosen here so that it can be reported."""
    chosen = secrets.randbits(63) if seed is None else seed
    return Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=chosen)


def engine_options(
    settings: Speculation,
    pool_fraction: float | None,
    fast_bytes: str | None,
    batch: int,
    backend: str,
    cache_policy: CachePolicy = CachePolicy.BENEFIT,
) -> EngineOptions:
    """Validated engine options."""
    return EngineOptions(
        backend=backend,
        max_batch=batch,
        pool_fraction=pool_fraction,
        fast_bytes=parse_bytes(fast_bytes),
        cache_policy=cache_policy,
        speculation=settings,
    )


def open_engine(model: str, options: EngineOptions) -> Engine:
    """Open a model, with a progress bar while it is converted."""
    with progress_bar("converting") as progress:
        return Engine.open(model, options, _announced(model, progress))


def _announced(model: str, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    said = False

    def update(done: int, total: int) -> None:
        nonlocal said
        if not said:
            say(f"converting {model} once; later runs use the cache", err)
            said = True
        progress(done, total)

    return update
