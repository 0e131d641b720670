"""`elmoe run`, `elmoe trace` and `elmoe logits`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from elmoe.backend.decoded import Activations
from elmoe.backend.protocol import DraftQuality
from elmoe.backend.reference import ReferenceBackend
from elmoe.backend.select import open_backend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.reasoning import Parts, split_reasoning
from elmoe.checkpoint.resolve import resolve
from elmoe.cli import options as opt
from elmoe.cli.console import Json, Model, emit_json, err, human_bytes, parse_integers, progress_bar, say
from elmoe.cli.prompts import Given, as_asked, gather, parse_variables
from elmoe.engine.controller import Mode
from elmoe.engine.elasticity import Teacher
from elmoe.engine.engine import Engine
from elmoe.engine.prompt import Prompt
from elmoe.engine.request import Generation, Output
from elmoe.engine.tiered_pool import CachePolicy
from elmoe.errors import ConfigError, ExpertReadError, PromptError
from elmoe.trace.atomic import atomic_file, storage_errors


def run(
    model: Model,
    prompt: opt.Texts = None,
    tokens: opt.TokenLists = None,
    prompts: opt.PromptFile = None,
    max_tokens: opt.MaxTokens = 128,
    temperature: opt.Temperature = 0.0,
    top_p: opt.TopP = 1.0,
    top_k: opt.TopK = 0,
    min_p: opt.MinP = 0.0,
    seed: opt.Seed = None,
    mode: opt.ModeOption = Mode.AUTO,
    width: opt.Width = 2,
    depth: opt.Depth = 4,
    verify: opt.Verify = None,
    draft_bits: opt.DraftBits = 4,
    draft_experts: opt.DraftExperts = None,
    pool_fraction: opt.PoolFraction = None,
    fast_bytes: opt.FastBytes = None,
    cache_policy: opt.CachePolicyOption = CachePolicy.BENEFIT,
    batch: opt.Batch = 16,
    backend: opt.BackendName = "cpu",
    chat: opt.Chat = None,
    template_var: opt.TemplateVariables = None,
    ignore_eos: opt.IgnoreEos = False,
    json: Json = False,
) -> None:
    """Complete prompts, losslessly, plainly or with Elastic-SD."""
    given = gather(prompt, tokens, prompts)
    settings = opt.speculation(mode, width, depth, verify, draft_bits, draft_experts)
    chosen = opt.sampling(temperature, top_p, top_k, min_p, seed)
    generation = Generation(max_tokens=max_tokens, sampling=chosen, ignore_eos=ignore_eos)
    options = opt.engine_options(settings, pool_fraction, fast_bytes, batch, backend, cache_policy)
    engine = opt.open_engine(model, options)
    asked = as_asked(engine, given, chat, parse_variables(template_var or []))
    outputs = engine.generate(asked, generation)
    answers = [_answer(engine, *each) for each in zip(given, asked, outputs, strict=True)]
    stats = engine.stats.as_dict()
    if engine.backend.tiers is not None:
        stats["tiers"] = asdict(engine.backend.tiers.counters())
    if json:
        rows = [
            output.as_dict() | {"text": parts.answer, "reasoning": parts.reasoning}
            for output, parts in zip(outputs, answers, strict=True)
        ]
        emit_json({"outputs": rows, "stats": stats, "seed": chosen.seed, "settings": engine.settings()})
        _report_failures(outputs)
        return
    for item, output, parts in zip(given, outputs, answers, strict=True):
        if len(given) > 1:
            say(f"> {item if isinstance(item, str) else _listed(item)}")
        if parts.reasoning:
            say(f"{parts.reasoning}\n", err, style="dim")
        say(_listed(output.token_ids) if engine.tokenizer is None else parts.answer)
    say(_summary(stats), err)
    _report_failures(outputs)


def _report_failures(outputs: Sequence[Output]) -> None:
    """The others' texts have been written; raises ExpertReadError for those that could not be finished."""
    failed = [output.error for output in outputs if output.error is not None]
    if failed:
        raise ExpertReadError(f"{len(failed)} of {len(outputs)} prompts could not be finished: {failed[0]}", ())


def trace(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="The Parquet file to write.", show_default=False)],
    prompts: opt.PromptFile = None,
    prompt: opt.Texts = None,
    tokens: opt.TokenLists = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    max_tokens: opt.MaxTokens = 64,
    temperature: opt.Temperature = 0.0,
    seed: opt.Seed = 0,
    mode: opt.ModeOption = Mode.SD,
    width: opt.Width = 2,
    depth: opt.Depth = 4,
    verify: opt.Verify = None,
    draft_bits: opt.DraftBits = 4,
    draft_experts: opt.DraftExperts = None,
    pool_fraction: opt.PoolFraction = None,
    fast_bytes: opt.FastBytes = None,
    cache_policy: opt.CachePolicyOption = CachePolicy.BENEFIT,
    batch: opt.Batch = 16,
    backend: opt.BackendName = "cpu",
    chat: opt.Chat = None,
    template_var: opt.TemplateVariables = None,
    ignore_eos: opt.IgnoreEos = False,
    json: Json = False,
) -> None:
    """Record routing, acceptance, pool and traffic of every forward pass while completing prompts."""
    from elmoe.trace.parquet import TraceWriter

    given = gather(prompt, tokens, prompts, limit)
    settings = opt.speculation(mode, width, depth, verify, draft_bits, draft_experts)
    generation = Generation(
        max_tokens=max_tokens, sampling=opt.sampling(temperature, 1.0, 0, 0.0, seed), ignore_eos=ignore_eos
    )
    options = opt.engine_options(settings, pool_fraction, fast_bytes, batch, backend, cache_policy)
    engine = opt.open_engine(model, options)
    with TraceWriter(output, engine.backend.shape, engine.settings(), source=Path(model).name) as writer:
        engine.recorder = writer
        engine.generate(as_asked(engine, given, chat, parse_variables(template_var or [])), generation)
    stats = engine.stats.as_dict()
    document = {"steps": engine.steps, "tokens": stats["emitted"], "path": str(output), "stats": stats}
    if json:
        emit_json(document)
    else:
        say(f"{output}: {engine.steps} steps, {stats['emitted']} tokens, {human_bytes(output.stat().st_size)}")


def logits(
    model: Model,
    tokens: Annotated[str, typer.Option(help="Token ids, for example 1,2,3.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write them.")] = Path("logits.npy"),
    draft: Annotated[bool, typer.Option("--draft", help="The draft's, from the target's KV cache.")] = False,
    draft_bits: opt.DraftBits = 4,
    draft_experts: opt.DraftExperts = None,
    activations: Annotated[Activations, typer.Option(help="fp32 compares with other implementations.")] = (
        Activations.INT8
    ),
    backend: Annotated[
        str | None, typer.Option(help="Default: cpu, or reference for fp32.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Write teacher-forced logits, float32 [tokens, vocabulary], to a .npy file."""
    ids = parse_integers(tokens, "--tokens")
    quality = DraftQuality(bits=draft_bits, experts_per_tok=draft_experts)
    with progress_bar("converting") as progress:
        checkpoint = Checkpoint.open(resolve(model, progress))
    wrong = next((token for token in ids if not 0 <= token < checkpoint.shape.vocab), None)
    if wrong is not None:
        raise PromptError(f"token {wrong} is not in the vocabulary of {checkpoint.shape.vocab}")
    if len(ids) > checkpoint.shape.max_context:
        raise PromptError(f"{len(ids)} tokens exceed the model's context of {checkpoint.shape.max_context}")
    if output.suffix != ".npy":
        raise ConfigError(f"{output}: logits are written in NumPy's format; name a .npy file")
    if activations is Activations.FP32:
        if backend not in (None, "reference"):
            raise ConfigError("only the reference backend computes with fp32 activations; leave --backend out")
        teacher = Teacher(ReferenceBackend(checkpoint, activations), ids)
    else:
        teacher = Teacher(open_backend(backend or "cpu", checkpoint), ids)
    made = teacher.draft_logits(0, len(ids), quality, None) if draft else teacher.logits
    with atomic_file(output) as file, storage_errors(output):
        np.save(file, made)
    if json:
        emit_json({"logits": str(output), "shape": list(made.shape), "draft": draft})
    else:
        say(f"{output}: float32 {list(made.shape)}")


def _answer(engine: Engine, given: Given, asked: Prompt, output: Output) -> Parts:
    """What the model thought and what it answers; the text as it is where the prompt went to the model as given."""
    if asked == given or engine.tokenizer is None:
        return Parts(answer=output.text)
    stopped = output.finish_reason == "stop"  # the last token is the stop token, for no stop strings are asked for
    ids = output.token_ids[:-1] if stopped else output.token_ids
    return split_reasoning(engine.tokenizer, engine.encode(asked), ids)


def _listed(ids: Sequence[int]) -> str:
    """As `--tokens` takes them."""
    return ",".join(map(str, ids))


def _summary(stats: dict[str, Any]) -> str:
    parts = [f"{stats['emitted']} tokens", f"{stats['decode_tok_s']:.0f} tok/s"]
    if stats["verify_steps"]:
        parts.append(f"acceptance {stats['acceptance_rate']:.2f}")
        parts.append(f"{1 + stats['mean_accepted_length']:.2f} tokens per verify step")
    parts.append(f"slow tier {human_bytes(stats['slow_bytes_read'] / max(stats['emitted'], 1))} per token")
    return " · ".join(parts)
