"""`elmoe elasticity`."""

from __future__ import annotations

from typing import Annotated

import typer

from elmoe.cli import options as opt
from elmoe.cli.console import Json, Model, emit_json, err, out, progress_bar, say, table
from elmoe.cli.measurements import DraftMeter, elasticity_row
from elmoe.cli.prompts import gather
from elmoe.engine.elasticity import POOL_FRACTIONS, Agreement, PoolChoice
from elmoe.quant.bitnested import Treatment


def elasticity(
    model: Model,
    prompts: opt.PromptFile = None,
    prompt: opt.Texts = None,
    tokens: opt.TokenLists = None,
    limit: Annotated[int, typer.Option(min=1, help="Only the first prompts.")] = 20,
    max_tokens: opt.MaxTokens = 64,
    chat: opt.Chat = None,
    json: Json = False,
) -> None:
    """Measure how often drafts agree with their target, over bits, pools and treatments."""
    given = gather(prompt, tokens, prompts, limit)
    meter = DraftMeter(model)
    say(f"{len(given)} sequences, the target's own greedy answers of up to {max_tokens} tokens", err)
    with progress_bar("measuring drafts") as progress:
        found = meter.measure(given, max_tokens, chat, progress)
    grid = found.cells
    if json:
        cells = [elasticity_row(cell) for cell in grid]
        emit_json({"grid": cells, "prompts": found.sequences, "max_tokens": max_tokens})
        return
    by_setting = {
        (cell.setting.bits, cell.setting.treatment, cell.setting.pool_fraction, cell.setting.pool): cell
        for cell in grid
    }
    rows = [
        (f"{bits} bits", *(_share(by_setting[bits, Treatment.AUGMENT, f, PoolChoice.HOT]) for f in POOL_FRACTIONS))
        for bits in (*range(2, 8), 8)
    ]
    rows += [
        (
            f"{bits} bits, random pool",
            "",
            *(_share(by_setting[bits, Treatment.AUGMENT, f, PoolChoice.RANDOM]) for f in POOL_FRACTIONS[1:]),
        )
        for bits in (4, 8)
    ]
    columns = ("draft \\ pool", *(f"{fraction:.0%}" for fraction in POOL_FRACTIONS))
    out.print(table("agreement of draft and target (augmented slices, hot pool)", columns, rows))
    rows = [
        (f"{bits} bits", *(_share(by_setting[bits, treatment, 1.0, PoolChoice.HOT]) for treatment in Treatment))
        for bits in range(2, 8)
    ]
    out.print(table("agreement by treatment (all experts)", ("draft", *(t.value for t in Treatment)), rows))


def _share(cell: Agreement) -> str:
    return f"{cell.agreement:.3f}"
