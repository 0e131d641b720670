"""`elmoe demo`: the main job on the embedded model, both ways, with proof, trace and report."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from elmoe.checkpoint.text import Detokenizer
from elmoe.cli import options as opt
from elmoe.cli.console import Json, emit_json, err, human_bytes, out, progress_bar, say, table
from elmoe.cli.measurements import ELASTIC, PLAIN, record_trace
from elmoe.cli.prompts import as_asked, read_jsonl
from elmoe.engine.controller import Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.prompt import Prompt
from elmoe.engine.request import Generation, Output
from elmoe.engine.sampler import Sampling
from elmoe.errors import InternalError, StorageError
from elmoe.report.page import Answer, AnswerPiece, DemoReport, write_demo_page
from elmoe.sim.own_trace import OwnTrace, machines_on_trace
from elmoe.trace.parquet import read_trace
from elmoe.trace.pool_activity import pool_activity
from elmoe.trace.schema import RunStats

ROUNDS = 3
"""Timed repetitions of each arm, interleaved; the median counts."""


@dataclass
class Arm:
    """One way of decoding the demo's prompts."""

    speculation: Speculation
    outputs: list[Output] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)

    def run(self, engine: Engine, prompts: list[Prompt], generation: Generation) -> None:
        """Decode everything once."""
        engine.speculation, engine.stats = self.speculation, RunStats()
        self.outputs = engine.generate(prompts, generation)
        self.stats = engine.stats.as_dict()
        self.speeds.append(self.stats["decode_tok_s"])
        self.stats["decode_tok_s"] = statistics.median(self.speeds)

    @property
    def token_ids(self) -> list[list[int]]:
        """What came out."""
        return [output.token_ids for output in self.outputs]


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder for the trace and the report.")] = Path("demo-output"),
    max_tokens: opt.MaxTokens = 96,
    json: Json = False,
) -> None:
    """Answer prompts with the embedded model, plainly and with Elastic-SD; prove them equal; write a report."""
    greedy = Generation(max_tokens=max_tokens)
    sampled = Generation(max_tokens=max_tokens, sampling=Sampling(temperature=0.8, top_p=0.95, seed=7))
    read = read_jsonl(Path(str(files("elmoe") / "data" / "demo_prompts.jsonl")))
    texts = [prompt for prompt in read if isinstance(prompt, str)]
    engine = opt.open_engine("tiny", EngineOptions(pool_fraction=0.5, speculation=ELASTIC))
    prompts = as_asked(engine, texts, None)
    plain, elastic = _race(engine, prompts, greedy)
    lossless = plain.token_ids == elastic.token_ids and _same_when_sampled(engine, prompts, sampled)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}; choose another with --out") from error
    trace = _traced(engine, prompts, greedy, folder / "trace.parquet", elastic)
    simulated = machines_on_trace(read_trace(trace))
    report = folder / "report.html"
    write_demo_page(report, _page(engine, texts, plain, elastic, lossless, trace, simulated))
    if json:
        emit_json(_document(plain, elastic, lossless, report, trace) | {"simulated": simulated.rows})
    else:
        _show(texts, plain, elastic, lossless)
        _show_machines(simulated)
        say(f"report: {report}")
    if not lossless:
        raise InternalError("Elastic-SD and plain decoding wrote different tokens; this must not happen, please report")


def _race(engine: Engine, prompts: list[Prompt], generation: Generation) -> tuple[Arm, Arm]:
    """Both arms, interleaved, after a short run that decodes the weights."""
    plain, elastic = Arm(PLAIN), Arm(ELASTIC)
    for speculation in (PLAIN, ELASTIC):
        Arm(speculation).run(engine, prompts, replace(generation, max_tokens=2))
    with progress_bar("plain and Elastic-SD, interleaved") as progress:
        for index in range(ROUNDS):
            plain.run(engine, prompts, generation)
            elastic.run(engine, prompts, generation)
            progress(index + 1, ROUNDS)
    return plain, elastic


def _same_when_sampled(engine: Engine, prompts: list[Prompt], generation: Generation) -> bool:
    plain, elastic = Arm(PLAIN), Arm(ELASTIC)
    plain.run(engine, prompts, generation)
    elastic.run(engine, prompts, generation)
    return plain.token_ids == elastic.token_ids


def _traced(engine: Engine, prompts: list[Prompt], generation: Generation, path: Path, elastic: Arm) -> Path:
    """The Elastic-SD run once more, recorded; not among the timed ones."""
    engine.speculation = elastic.speculation
    return record_trace(engine, prompts, generation, path, "tiny").path


def _page(
    engine: Engine, texts: list[str], plain: Arm, elastic: Arm, lossless: bool, trace: Path, simulated: OwnTrace
) -> DemoReport:
    return DemoReport(
        model="tiny",
        shape=engine.backend.shape,
        backend=engine.options.backend,
        machine=f"{os.cpu_count()} x {platform.machine()} cores, Python {platform.python_version()}",
        settings=engine.settings(),
        lossless=lossless,
        ar_stats=plain.stats,
        sd_stats=elastic.stats,
        answers=tuple(_answer(engine, text, output) for text, output in zip(texts, elastic.outputs, strict=True)),
        pool=pool_activity(read_trace(trace)),
        simulated=simulated,
    )


def _answer(engine: Engine, prompt: str, output: Output) -> Answer:
    assert engine.tokenizer is not None, "the embedded model has a tokenizer"
    detokenizer = Detokenizer(engine.tokenizer)
    pieces = [
        AnswerPiece(detokenizer.feed([token]), drafted)
        for token, drafted in zip(output.token_ids, output.drafted, strict=True)
    ]
    pieces.append(AnswerPiece(detokenizer.finish(), False))
    return Answer(prompt, tuple(pieces), output.finish_reason, output.acceptance.as_dict())


def _document(plain: Arm, elastic: Arm, lossless: bool, report: Path, trace: Path) -> dict[str, Any]:
    return {
        "lossless": lossless,
        "ar_tok_s": plain.stats["decode_tok_s"],
        "sd_tok_s": elastic.stats["decode_tok_s"],
        "acceptance_rate": elastic.stats["acceptance_rate"],
        "mean_accepted_length": elastic.stats["mean_accepted_length"],
        "report": str(report),
        "trace": str(trace),
        "ar": plain.stats,
        "sd": elastic.stats,
    }


def _show(texts: list[str], plain: Arm, elastic: Arm, lossless: bool) -> None:
    for text, output in list(zip(texts, elastic.outputs, strict=True))[:3]:
        say(f"> {text}\n{output.text}\n")
    arms = (plain, elastic)
    rows: list[tuple[object, ...]] = [
        ("tokens written", *(arm.stats["emitted"] for arm in arms)),
        ("target passes", *(arm.stats["target_passes"] for arm in arms)),
        ("slow-tier bytes per token", *(human_bytes(a.stats["slow_bytes_read"] / a.stats["emitted"]) for a in arms)),
        ("acceptance rate", "", f"{elastic.stats['acceptance_rate']:.2f}"),
        ("tokens per verify step", "", f"{1 + elastic.stats['mean_accepted_length']:.2f}"),
        ("tokens/s, cpu backend", *(f"{arm.stats['decode_tok_s']:.0f}" for arm in arms)),
    ]
    title = f"{len(texts)} prompts in one batch"
    out.print(table(title, ("", "plain", "Elastic-SD"), rows))
    verdict = "identical tokens, greedy and sampled" if lossless else "DIFFERENT TOKENS"
    say(f"lossless: {verdict}")
    if elastic.stats["decode_tok_s"] < plain.stats["decode_tok_s"]:
        say("The embedded model costs a CPU little to read: here plain decoding is the faster of the two.", err)


def _show_machines(simulated: OwnTrace) -> None:
    """The trace on the simulated machines."""
    lines = [
        (
            f"{row['system']}, {row['scheme'] if row['mode'] == 'sd' else 'plain'}",
            f"{1e3 * row['latency_ms_per_token']:.1f}",
            f"{row['speedup_vs_xpu']:.2f}",
            f"{1e3 * row['energy_mj_per_token']['total']:.1f}",
            row["bottleneck"],
        )
        for row in simulated.rows
    ]
    title = f"simulated accelerators on this trace; HB cut to {human_bytes(simulated.hb_bytes)}"
    out.print(table(title, ("", "us per token", "speed / xpu", "uJ per token", "waits for"), lines))
