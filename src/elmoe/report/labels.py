"""Names of columns and values as readers see them, and the colour of each kind of thing. For page and images alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = {
    "acceptance": "acceptance rate",
    "acceptance_rate": "acceptance rate",
    "batch": "batch",
    "bits": "draft bits",
    "bottleneck": "waits for",
    "cached_experts_per_layer": "experts that fit",
    "capacity_share": "share cached",
    "context": "context",
    "cost_usd_per_million_tokens.total": "USD per million tokens",
    "deviation": "simulated / quoted - 1",
    "energy_mj_per_token.total": "mJ per token",
    "experts_per_layer": "distinct experts",
    "experts_per_pass": "experts per pass",
    "experts_per_token": "experts per token",
    "fits_share": "share that fits",
    "hb_gb": "HB, GB",
    "latency_ms_per_token": "ms per token",
    "mean_accepted_length": "accepted length",
    "measured_model": "measured model",
    "miss_rate": "miss rate",
    "pool_fraction": "share in the pool",
    "sequences_per_pass": "sequences per pass",
    "shown_system": "system",
    "speedup_vs_ar": "SD / AR",
    "speedup_vs_xpu": "speedup over xPU",
    "tokens_per_pass": "tokens per pass",
    "tokens_per_s": "tokens/s",
    "um2": "um2",
    "unique_experts": "distinct experts",
    "vary": "changed",
}
"""Others are called as they are."""

VALUES = {
    "ar": "AR",
    "sd": "SD",
    "none": "none",
    "eagle": "EAGLE-SD",
    "slm": "SLM-SD",
    "quant": "Quant-SD",
    "elastic": "Elastic-SD",
    "ext": "external memory",
    "hb": "stacked memory",
    "pe": "arithmetic",
    "link": "links",
    "near": "near-memory units",
    "comm": "communication",
    "static": "static",
    "lru": "LRU",
    "lfu": "LFU",
    "belady": "Belady (optimum)",
    "hot": "hot",
    "less": "less",
    "more": "more",
    "inside": "inside a request",
    "across": "across requests",
}
FACETS = {"hb_gb": "{} GB HB", "reuse": "overlap {}", "batch": "batch {}"}
SERIES = {"hb_gb": "{} GB HB", "bits": "{} bits"}

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b5539c", "#9a7400", "#3d9bd1", "#6a5acd", "#6f6f6f")
DARK = ("#55a9e6", "#f28e4b", "#3cc6a0", "#e39bc4", "#e0b84c", "#9bd5f7", "#a79bf0", "#b0b0b0")
"""After Okabe and Ito, told apart by colour-blind readers; the second for dark pages."""
COLORS = {
    **{"xpu": 7, "xpu-pim": 4, "xpu-logicpim": 3, "xpu-nmp": 5, "hb-xpu": 1, "elmoe-3d": 0},
    **{"none": 7, "eagle": 1, "slm": 4, "quant": 3, "elastic": 0},
    **{"qwen3-30b-a3b": 0, "glm-4.7-flash": 1, "deepseek-v2-lite": 2, "gpt-oss-20b": 3},
    **{"ar": 7, "sd": 0, "draft": 1, "verify": 0, "inside": 0, "across": 1},
    **{"augment": 0, "round": 2, "truncate": 1, "dedicated": 3, "hot": 0, "random": 7},
    **{"lru": 1, "lfu": 4, "belady": 2, "less": 1, "more": 0, "base": 7},
    **{"dense weights": 7, "KV cache": 4, "draft model": 1, "experts": 0},
    **{"compute": 2, "ext": 1, "hb": 0, "comm": 4, "static": 7, "energy": 1, "hardware": 7},
    **{"conventional": 7, "augmented": 0, "per bank": 4, "all banks": 1},
}
"""Number of the colour of a value, wherever it turns up; others are numbered as they come."""


def name_of(value: Any, column: str = "", forms: dict[str, str] = SERIES) -> str:
    """A value as a legend has it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return forms.get(column, "{}").format(VALUES.get(value, value) if isinstance(value, str) else value)


def column_name(column: str) -> str:
    """A column as an axis or a hint has it."""
    return COLUMNS.get(column, column.replace("_", " "))


def color_numbers(values: Sequence[Any]) -> dict[Any, int]:
    """Value -> number of its colour; equal things have the same everywhere."""
    taken = {COLORS[value] for value in values if value in COLORS}
    free = [number for number in range(len(LIGHT)) if number not in taken] or list(range(len(LIGHT)))
    rest = [value for value in values if value not in COLORS]
    return {value: COLORS[value] for value in values if value in COLORS} | {
        value: free[index % len(free)] for index, value in enumerate(rest)
    }
