"""The figures that the FAQ and the concepts quote are those of bench/results: where one is measured anew and differs,
this says which sentence to rewrite."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def results(name: str):
    """A measurement."""
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def lossless():
    runs = results("lossless")["runs"]
    assert sum(run["mismatches"] for run in runs) == 0
    compared = [run for run in runs if (run["run"]["kind"], run["run"]["batch"]) != ("ar", 16)]  # those are the measure
    yield f"no text differs in {len(runs)} runs over 200 prompts"
    yield f"{sum(run['tokens_compared'] for run in compared):,} tokens compared"


def soak():
    soaked = results("soak")
    yield f"{soaked['requests']:,} requests, {'no error' if not soaked['errors'] else soaked['errors']}"


def llama_cpp():
    ratios = {row["batch"]: row["ratio_to_peer"] for row in results("llama_cpp")["rows"] if row["arm"] == "ar"}
    yield f"{ratios[1]:.2f} times at batch 1, {ratios[16]:.2f} times at batch 16"


def elasticity():
    cells = {
        (row["treatment"], row["pool"], row["pool_fraction"]): row["agreement"]
        for row in results("elasticity")["grid"]
        if row["bits"] == 4
    }
    yield f"picks the target's token at {cells['augment', 'hot', 1.0]:.3f} of positions"
    yield f"with own scales at {cells['dedicated', 'hot', 1.0]:.3f}"
    yield f"truncation at {cells['truncate', 'hot', 1.0]:.3f}"
    yield f"half of the experts {cells['augment', 'hot', 0.5]:.3f}, and {cells['augment', 'random', 0.5]:.3f} if"


def agreement():
    rows = results("numerics")["agreement"]
    worst = {row["model"]: max(row["batch"], row["tree"]) for row in rows}
    tiny = worst.pop(next(name for name in worst if "tiny" in name))
    yield f"within {max(worst.values()):.1e} of transformers".replace("e-0", "e-")
    yield f"{tiny:.1e} on `tiny`".replace("e-0", "e-")


def simulator():
    (wide,) = (row for row in results("validation")["headline"] if row["hb_gb"] == 8)
    yield f"speedup over the xPU at 8 GB is {wide['speedup_vs_xpu']['mean']:.2f}"


def rtl():
    overheads = results("rtl")["overhead_percent"]["conservative"]
    yield f"+{overheads['pair']:.2f} % against columns"


def speculation():
    ratios = [row for row in results("cost_model")["speculation"] if row["arm"].startswith("sd")]
    assert max(row["ratio_to_ar"] for row in ratios if row["batch"] == 1) < 1, "it loses at batch 1"
    yield f"wins by up to {max(row['ratio_to_ar'] for row in ratios):.2f} in batches of 4 and 16"


@pytest.mark.parametrize("measured", [lossless, soak, llama_cpp, elasticity, agreement, simulator, rtl, speculation])
def test_the_faq_quotes_what_was_measured(measured):
    text = " ".join((ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split())
    for sentence in measured():
        assert sentence in text


def test_concepts_quote_what_was_measured():
    page = (ROOT / "docs" / "concepts" / "lossless.md").read_text(encoding="utf-8")
    assert f"{len(results('lossless')['runs'])} runs over 200 prompts" in page
