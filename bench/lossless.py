"""Is Elastic-SD lossless? Its tokens against those of autoregressive decoding (AR), prompt by prompt.

AR at batch 16 is the reference, greedy and sampled; every other run (AR at batches 4 and 1, Elastic-SD in a covering
design, SD switched off, on and off again inside a text) must give the same token ids. Every run is kept in the result
file as soon as it is done, so the same command again does what is missing; after the last run it measures anew.

    python bench/lossless.py --prompts DIR      # JSON Lines files; `turns` or `prompt` of each line
    python bench/lossless.py --markdown         # the tables of docs/lossless.md from the result file
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.backend.protocol import DraftQuality
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.request import Generation
from elmoe.engine.sampler import Sampling
from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result

TEMPERATURE, TOP_P = 0.8, 0.95
SHAPES = ((1, 2, 2), (1, 6, 6), (2, 4, 8), (3, 3, 12), (4, 6, 24))
"""(w, d, V): width, depth, tokens verified."""
POOLS = (0.0, 0.25, 0.5, 1.0)
"""Pool fractions; 0 means one token's experts, k."""
BITS = (2, 3, 4, 5, 6, 7, 8)
BATCHES = (16, 4, 1)
SHARES = {16: 2, 4: 3, 1: 3}
"""By batch size: a run that does not take all prompts takes one in this many."""
SWITCHED_PROMPTS = 20
FIRST_DIFFERENCES = 5


@dataclass(frozen=True)
class Prompts:
    """Prompts of a folder as token ids."""

    names: list[str]
    tokens: list[list[int]]
    cut: int
    """How many did not fit the context with their answer and lost their beginning."""


@dataclass(frozen=True)
class Run:
    """One run over prompts ``offset, offset + every, ...``. What does not apply keeps its default."""

    kind: str
    """``ar``, ``sd``, or ``switch``: AR, SD and AR again inside every text."""
    batch: int
    sampled: bool = False
    width: int = 2
    depth: int = 4
    verify: int = 8
    pool: float = 0.5
    bits: int = 4
    experts_per_tok: int | None = None
    every: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Settings:
    """What all runs of a result file share."""

    model: str
    prompts: str
    count: int
    tokens: int


def covering_design() -> list[Run]:
    """References first. Every value of every factor occurs at every batch size.

    AR and the default settings take all prompts at every batch size. The others take every second one at batch 16 and
    every third at batches 4 and 1, in turn, so that together they take every prompt at least twice.
    """
    runs = [Run("ar", 16), Run("ar", 16, sampled=True)]
    for number, batch in enumerate(BATCHES):
        every = SHARES[batch]
        if batch != BATCHES[0]:
            runs += [Run("ar", batch), Run("ar", batch, sampled=True, every=every, offset=number)]
        runs.append(Run("sd", batch))
        runs += [_covering(number, batch, index, bits) for index, bits in enumerate(BITS)]
        runs.append(Run("sd", batch, sampled=True, every=every, offset=number % every))
        runs.append(Run("sd", batch, True, *SHAPES[-1], pool=0.0, bits=3, every=every, offset=(number + 1) % every))
        runs.append(Run("switch", batch))
    return sorted(dict.fromkeys(runs), key=lambda run: run.every)


def _covering(number: int, batch: int, index: int, bits: int) -> Run:
    every = SHARES[batch]
    return Run(
        "sd",
        batch,
        False,
        *SHAPES[(index + 2 * number + 1) % len(SHAPES)],
        pool=POOLS[(index + number) % len(POOLS)],
        bits=bits,
        experts_per_tok=2 if index % 3 == number else None,
        every=every,
        offset=(index + number) % every,
    )


def read_prompts(engine: Engine, folder: Path, count: int, new_tokens: int) -> Prompts:
    """First turns of the files of a folder, mixed: as many from each (a short file gives all it has), evenly spread."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise SystemExit(f"{folder} has no .jsonl files")
    shares = [count // len(files) + (index < count % len(files)) for index in range(len(files))]
    picked = []
    for path, share in zip(files, shares, strict=True):
        lines = path.read_text().splitlines()
        taken = [i * len(lines) // share for i in range(share)] if share < len(lines) else range(len(lines))
        picked.append([{"id": f"{path.stem}/{i}"} | json.loads(lines[i]) for i in taken])
    mixed = [entry for group in zip_longest(*picked) for entry in group if entry is not None]
    assert engine.tokenizer is not None
    chat = engine.tokenizer.has_chat_template
    longest = engine.backend.shape.max_context - new_tokens
    texts = [entry["turns"][0] if "turns" in entry else entry["prompt"] for entry in mixed]
    encode = engine.tokenizer.encode_chat if chat else engine.tokenizer.encode
    tokens = [encode([{"role": "user", "content": text}] if chat else text) for text in texts]
    cut = sum(len(each) > longest for each in tokens)
    return Prompts([entry["id"] for entry in mixed], [each[-longest:] for each in tokens], cut)


@cache
def _prompts(settings: Settings) -> Prompts:
    return read_prompts(Engine.open(settings.model), Path(settings.prompts), settings.count, settings.tokens)


def numbers_of(run: Run, count: int) -> list[int]:
    """Which prompts a run takes."""
    if run.kind == "switch":
        return list(range(0, count, max(1, count // SWITCHED_PROMPTS)))
    return list(range(run.offset, count, run.every))


def execute(settings: Settings, run: Run) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids of every prompt of a run, and its counters."""
    prompts = _prompts(settings)
    quality = DraftQuality(bits=run.bits, experts_per_tok=run.experts_per_tok)
    mode = Mode.SD if run.kind == "sd" else Mode.AR
    speculation = Speculation(mode, run.width, run.depth, run.verify, quality)
    options = EngineOptions(max_batch=run.batch, pool_fraction=run.pool, speculation=speculation)
    engine = Engine.open(settings.model, options)
    numbers = numbers_of(run, len(prompts.tokens))
    started = time.perf_counter()
    if run.kind == "switch":
        texts = [ids for group in _batches(numbers, run.batch) for ids in _switched(engine, settings, prompts, group)]
    else:
        each = [_generation(settings, run.sampled, number) for number in numbers]
        outputs = engine.generate([prompts.tokens[number] for number in numbers], each)
        texts = [output.token_ids for output in outputs]
    return texts, {"seconds": round(time.perf_counter() - started, 1), "acceptance": engine.stats.acceptance.as_dict()}


def _generation(settings: Settings, sampled: bool, number: int) -> Generation:
    sampling = Sampling(TEMPERATURE, TOP_P, seed=number) if sampled else Sampling()
    return Generation(settings.tokens, sampling, ignore_eos=True)


def _batches(numbers: list[int], size: int) -> Iterator[list[int]]:
    return (numbers[first : first + size] for first in range(0, len(numbers), size))


def _switched(engine: Engine, settings: Settings, prompts: Prompts, numbers: list[int]) -> list[list[int]]:
    """AR for a third of every text, SD for the next, AR again."""
    plain = engine.speculation
    speculative = Speculation(Mode.SD, plain.width, plain.depth, plain.verify, plain.quality)
    requests = [engine.submit(prompts.tokens[number], _generation(settings, False, number)) for number in numbers]
    while any(request.finish_reason is None for request in requests):
        written = min(len(request.tokens) - request.prompt_length for request in requests)
        on = settings.tokens // 3 <= written < 2 * settings.tokens // 3
        engine.speculation = speculative if on else plain
        engine.step()
    engine.speculation = plain
    return [request.output().token_ids for request in requests]


def compare(
    prompts: list[str], numbers: list[int], texts: list[list[int]], reference: list[list[int]]
) -> dict[str, Any]:
    """Tokens compared, texts that differ, and where the first few of them do."""
    differing, tokens = [], 0
    for number, ids in zip(numbers, texts, strict=True):
        expected = reference[number]
        tokens += len(expected)
        if ids != expected:
            at = next((i for i, pair in enumerate(zip_longest(ids, expected)) if pair[0] != pair[1]), 0)
            differing.append({"prompt": prompts[number], "first_difference_at": at})
    return {
        "prompts": len(numbers),
        "tokens_compared": tokens,
        "mismatches": len(differing),
        "first_differences": differing[:FIRST_DIFFERENCES],
    }


class Results:
    """The result file and, beside it until all is done, the reference texts."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.texts_name = name, f"{name}.reference"
        prompts = _prompts(settings)
        self.names = prompts.names
        self.document = provenance(_described(settings, prompts)) | {"numpy": _numpy(), "runs": []}
        self.references: dict[str, list[list[int]]] = {}
        path, texts_path = (RESULTS / f"{each}.json" for each in (self.name, self.texts_name))
        if texts_path.exists():
            old = json.loads(path.read_text())
            if old["settings"] != self.document["settings"]:
                raise SystemExit(f"{path} is unfinished and of other settings; give another --name or remove it")
            self.document["runs"] = old["runs"]
            self.references = json.loads(texts_path.read_text())

    def lacks(self, run: Run) -> bool:
        """Whether a run is still to be done."""
        return all(done["run"] != asdict(run) for done in self.document["runs"])

    def add(self, run: Run, texts: list[list[int]], counters: dict[str, Any]) -> None:
        """Keep a finished run; the first of a sampling mode becomes its reference."""
        numbers = numbers_of(run, len(self.names))
        key = "sampled" if run.sampled else "greedy"
        reference = self.references.setdefault(key, texts)
        if reference is texts:
            write_result(self.texts_name, self.references)
        entry = {"run": asdict(run), "commit": self.document["commit"]}
        entry |= compare(self.names, numbers, texts, reference) | counters
        self.document["runs"].append(entry)
        write_result(self.name, self.document)
        print(
            f"{run.kind:6} batch {run.batch:2} {key:7} w={run.width} d={run.depth} V={run.verify} pool={run.pool} "
            f"bits={run.bits}: {entry['prompts']} prompts, {entry['mismatches']} mismatches, "
            f"{entry['seconds']} s",
            flush=True,
        )

    def finish(self) -> bool:
        """Drop the reference texts; returns whether no text differed."""
        (RESULTS / f"{self.texts_name}.json").unlink(missing_ok=True)
        return all(entry["mismatches"] == 0 for entry in self.document["runs"])


def _described(settings: Settings, prompts: Prompts) -> dict[str, Any]:
    folder = resolve(settings.model)
    return {
        "model": folder.name.removesuffix(".elmoe"),
        "model_source_sha256": Checkpoint.open(folder).manifest["source"]["sha256"],
        "backend": EngineOptions().backend,
        "tokens_per_prompt": settings.tokens,
        "stop_tokens": "ignored",
        "sampling": {"temperature": TEMPERATURE, "top_p": TOP_P, "seed": "the prompt's number"},
        "prompts": len(prompts.names),
        "prompt_files": sorted({name.split("/")[0] for name in prompts.names}),
        "prompt_tokens": sum(map(len, prompts.tokens)),
        "longest_prompt": max(map(len, prompts.tokens)),
        "prompts_cut_to_fit": prompts.cut,
    }


def _numpy() -> dict[str, str]:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {"version": np.__version__, "blas": f"{blas['name']} {blas['version']}"}


def measure(settings: Settings, name: str, jobs: int) -> bool:
    """Do all runs that the result file lacks; returns whether every text was the reference's."""
    results = Results(name, settings)
    runs = [run for run in covering_design() if results.lacks(run)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for stage in ([run for run in runs if _is_reference(run)], [run for run in runs if not _is_reference(run)]):
            started = {pool.submit(execute, settings, run): run for run in stage}
            for done in as_completed(started):
                results.add(started[done], *done.result())
    return results.finish()


def _is_reference(run: Run) -> bool:
    return run.kind == "ar" and run.batch == BATCHES[0]


def markdown(document: dict[str, Any]) -> str:
    """The table of docs/lossless.md and what it was measured on."""
    runs = sorted(document["runs"], key=lambda entry: _order(entry["run"]))
    settings, numpy = document["settings"], document["numpy"]
    commits = sorted({entry.get("commit", document["commit"]) for entry in runs})
    compared = [entry for entry in runs if not _is_reference(Run(**entry["run"]))]
    total, wrong = (sum(entry[name] for entry in compared) for name in ("tokens_compared", "mismatches"))
    text = (
        f"Measured with elmoe {document['elmoe']} ({', '.join(commits)}), model `{settings['model']}`, "
        f"{settings['backend']} backend, NumPy {numpy['version']} with {numpy['blas']}. {settings['prompts']} prompts "
        f"({', '.join(settings['prompt_files'])}) of {settings['prompt_tokens']:,} tokens, the longest of "
        f"{settings['longest_prompt']}; {settings['prompts_cut_to_fit']} had to be cut to fit the context. "
        f"{settings['tokens_per_prompt']} tokens generated for each. **{total:,} tokens compared, "
        f"{wrong} texts differ.**\n\n"
    )
    columns = ["run", "batch", "w, d, V", "pool", "bits", "experts", "prompts", "tokens", "texts that differ"]
    columns += ["acceptance_rate", "mean_accepted_length", "level_acceptance"]
    return text + markdown_table(columns, [_row(entry) for entry in runs])


def _order(run: dict[str, Any]) -> tuple[Any, ...]:
    return -run["batch"], ("ar", "sd", "switch").index(run["kind"]), run["sampled"]


def _row(entry: dict[str, Any]) -> list[object]:
    run, acceptance = entry["run"], entry["acceptance"]
    title = {"ar": "AR", "sd": "SD", "switch": "AR, SD, AR"}[run["kind"]] + (" sampled" if run["sampled"] else "")
    if _is_reference(Run(**run)):
        title += " (the reference)"
    drafts = run["kind"] != "ar"
    settings = [f"{run['width']}, {run['depth']}, {run['verify']}", f"{run['pool'] or 'k experts'}", f"{run['bits']}"]
    settings.append(f"{run['experts_per_tok'] or 'k'}")
    rates = [f"{acceptance[name]:.3f}" for name in ("acceptance_rate", "mean_accepted_length", "level_acceptance")]
    return [
        title,
        f"{run['batch']}",
        *(settings if drafts else ["", "", "", ""]),
        f"{entry['prompts']}",
        f"{entry['tokens_compared']:,}",
        f"{entry['mismatches']}",
        *(rates if drafts else ["", "", ""]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, help="folder of .jsonl files with the field turns or prompt")
    parser.add_argument("--model", default="tiny", help="as in `elmoe run`")
    parser.add_argument("--count", type=int, default=200, help="prompts, evenly from all files")
    parser.add_argument("--tokens", type=int, default=64, help="tokens generated per prompt")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; set OPENBLAS_NUM_THREADS=1 beside it")
    parser.add_argument("--name", default="lossless", help="of the file in bench/results")
    parser.add_argument("--markdown", action="store_true", help="only rewrite the tables of docs/lossless.md")
    arguments = parser.parse_args()
    if arguments.markdown:
        document = json.loads((RESULTS / f"{arguments.name}.json").read_text())
        replace_block(ROOT / "docs" / "lossless.md", "lossless", markdown(document))
        return
    if arguments.prompts is None:
        parser.error("--prompts is needed")
    settings = Settings(arguments.model, str(arguments.prompts), arguments.count, arguments.tokens)
    if not measure(settings, arguments.name, arguments.jobs):
        raise SystemExit("some texts differ: see `mismatches` in the result file")


if __name__ == "__main__":
    main()
