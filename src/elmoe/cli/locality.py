"""`elmoe locality`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from elmoe.cli import options as opt
from elmoe.cli.console import Json, Model, emit_json, out, progress_bar, say, table
from elmoe.cli.measurements import measure_locality
from elmoe.cli.prompts import gather

HALF = 0.5


def locality(
    model: Model,
    prompts: opt.PromptFile = None,
    prompt: opt.Texts = None,
    tokens: opt.TokenLists = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    max_tokens: opt.MaxTokens = 48,
    chat: opt.Chat = None,
    json: Json = False,
) -> None:
    """Measure which experts decoding reads: by pass in both modes, inside and across requests, and what caches miss."""
    given = gather(prompt, tokens, prompts, limit)
    with progress_bar("decoding") as progress:
        found = measure_locality(model, given, max_tokens, chat, progress)
    if json:
        emit_json(found | {"prompts": len(given), "max_tokens": max_tokens})
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    modes = {(row["mode"], row["batch"]): row for row in found["activation"]}
    misses = {(row["policy"], row["batch"], row["capacity_share"]): row["miss_rate"] for row in found["misses"]}
    lines = []
    for batch in dict.fromkeys(row["batch"] for row in found["activation"]):
        plain, elastic = modes["ar", batch], modes["sd", batch]
        passes = [f"{row['experts_per_pass']:.1f}" for row in (plain, elastic)]
        each = [f"{row['experts_per_token']:.2f}" for row in (plain, elastic)]
        lines.append((batch, *passes, *each, *(f"{misses[p, batch, HALF]:.1%}" for p in ("lru", "hot", "belady"))))
    columns = ("batch", "per pass, AR", "SD", "per token, AR", "SD", "misses, LRU", "hot", "optimal")
    title = f"distinct experts of {found['experts']} per layer; misses with half of them cached"
    out.print(table(title, columns, lines))
    inside, across = (
        {row["tokens"]: row["experts_per_layer"] for row in found["unique"] if row["where"] == where}
        for where in ("inside", "across")
    )
    longest = max(set(inside) & set(across))
    say(
        f"{longest} tokens: {inside[longest]:.1f} distinct experts inside a request, {across[longest]:.1f} across "
        f"requests; popularity exponent {found['popularity_exponent']:.2f}, reuse {found['inside_reuse']:.2f}"
    )
