"""Makes random-weight Qwen3-MoE `.elmoe` folders whose routing is as skewed and as local as a named profile says.

    python bench/skewed_checkpoint.py [FOLDER] [--profiles qwen3-30b-a3b,...] [--num-hidden-layers 8 ...] [--seed 0]

One folder per profile (the four models of the paper on MT-Bench, `sim/specs/profiles.toml`), FOLDER/PROFILE.elmoe,
default build/models. The default shape is eight layers of Qwen3-30B-A3B at full width, 5.3 GB. Experts are the same in
all folders (hard links): only ``dense.bin`` differs. No tokenizer: prompts are token ids.

How it routes is in `skewed_routing.py`. In the model: dimension 0 of the residual stream holds the same large value for
every token and no layer writes to it, so that column 0 of a router is a bias per expert; dimensions 1 to 31, which
share its scale of INT8, begin alike; the others hold the token's content, which layers add to as in any model. The head
scores a token by the content of its predecessor on the cycle, so that token t is followed by t + 1 (modulo the
vocabulary), greedily, under sampling at usual temperatures and in drafts: natural acceptance is close to 1, and whoever
emulates a lower one spoils drafted tokens on purpose.

Weights of attention and experts are N(0, 0.02), made as INT8 codes right away: no Hugging Face folder is written. The
same options give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from elmoe.checkpoint.convert import write_dense, write_experts, write_manifest
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.layout import DENSE_FILE, LSB_FILE, MSB_FILE, layout_of
from elmoe.checkpoint.partial_folder import partial_folder, refuse_existing
from elmoe.checkpoint.sources import model_sources
from elmoe.checkpoint.supported import supported_model
from elmoe.checkpoint.weight_source import FloatRows, Int8Rows, Rows
from elmoe.checkpoint.writer import PieceWriter
from elmoe.errors import ConfigError, ElmoeError
from elmoe.models.registry import family_of
from elmoe.models.source_tensors import Part
from elmoe.quant.bitnested import GROUP, Int8
from elmoe.sim.model import MODELS, load_model
from elmoe.sim.profile import Profile, named_profile, scheme_specs
from harness import ROOT
from random_checkpoint import DEVIATION, DIMENSIONS, EMBEDDING, EMBEDDING_SCALE, qwen3_config
from skewed_routing import (
    Target,
    calibrated_biases,
    content_cycle,
    correlation_for,
    popularity_order,
    router_content,
    target_of,
)

Float32 = npt.NDArray[np.float32]

DEFAULT_FOLDER = ROOT / "build" / "models"
WORKLOAD = "mt-bench"
SHAPE = DIMENSIONS | {
    "hidden_size": 2048,
    "num_hidden_layers": 8,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 8192,
}
"""Qwen3-30B-A3B's config.json but for layers and vocabulary."""

CONTENT_DEVIATION = 3 * DEVIATION * EMBEDDING_SCALE
"""So large beside what layers add that popularity and reuse are the calibrated ones in the last layer, too: with a
third of it, the context's mean, which attention adds, raised the reuse from 0.43 in the first layer to 0.58 in the
eighth."""
LARGEST = 3 * CONTENT_DEVIATION
CONSTANT = LARGEST * 120 / 127
"""Value of dimension 0. Its group of 32 has an eighth of the stream's energy at full width. INT8 code 120 is one that a
draft reads exactly: its lower half is the constant that augmentation puts there."""
SUCCESSOR_LOGIT = 40.0
"""Of the token that follows, when the head sees nothing but the content; those of the others have a deviation of 1."""
CODE_RANGE = 2.1
"""Standard deviations at which codes of +-127 lie: the mean largest magnitude of 32 normal values. Those beyond are cut
off."""
WRITES_STREAM = ("o_proj.weight", "down_proj.weight")
"""Ends of the names of matrices whose rows write to the residual stream."""
FIELD = "skewed_routing"
"""Of config.json: what the folder was made for."""


def normal_codes() -> Int8:
    """[65536] INT8 codes by a uniform 16-bit number: normal values in units of the group's scale."""
    quantiles = (np.arange(1 << 16) + 0.5) / (1 << 16)
    values = np.array([NormalDist().inv_cdf(quantile) for quantile in quantiles])
    return np.clip(np.rint(values * 127 / CODE_RANGE), -127, 127).astype(np.int8)


@dataclass(frozen=True, eq=False)
class SkewedWeights:
    """A `WeightSource` that makes what is asked for."""

    path: Path
    config: dict[str, Any]
    seed: int
    exact: dict[str, npt.NDArray[Any]] = field(repr=False)
    """Embedding, head and routers by name, [rows, inputs]."""
    codes: Int8 = field(default_factory=normal_codes, repr=False)
    files: tuple[Path, ...] = ()
    tensors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def unused(self, parts: Iterable[Part]) -> tuple[str, ...]:  # noqa: ARG002
        """None: there is what is asked for."""
        return ()

    def small_files(self) -> dict[str, bytes]:
        """``config.json``."""
        return {"config.json": (json.dumps(self.config, indent=1) + "\n").encode()}

    def check(self, part: Part) -> int:
        """Its number of weights."""
        return part.rows * part.width

    def read(self, part: Part, first: int, last: int) -> Rows:
        """Rows of a part: exact ones, ones for norms, random codes for the rest."""
        if part.tensor in self.exact:
            return FloatRows(self.exact[part.tensor][first:last])
        if "norm" in part.tensor:
            return FloatRows(np.ones((last - first, part.width), dtype=np.float32))
        rng = np.random.default_rng([self.seed, zlib.crc32(part.tensor.encode()), first])
        size = (last - first, part.width)
        drawn = np.frombuffer(rng.bytes(2 * size[0] * size[1]), dtype=np.uint16)
        scales = np.full((size[0], size[1] // GROUP), np.float16(DEVIATION * CODE_RANGE / 127))
        if first == 0 and part.tensor.endswith(WRITES_STREAM):
            scales[0] = 0  # in drafts, too, which a code of 0 alone would not be
        return Int8Rows(self.codes[drawn].reshape(size), scales)


def exact_tensors(config: dict[str, Any], target: Target, correlation: float, seed: int) -> dict[str, Float32]:
    """Embedding, head and routers."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    content = content_cycle(vocab, hidden - GROUP, correlation, np.random.default_rng([seed, 0]))
    embedding = np.zeros((vocab, hidden), dtype=np.float32)
    embedding[:, :GROUP], embedding[:, 1], embedding[:, GROUP:] = CONSTANT, LARGEST, CONTENT_DEVIATION * content
    root_mean_square = float(np.sqrt((embedding[0, :GROUP] ** 2).sum() / hidden + CONTENT_DEVIATION**2))
    normed = CONTENT_DEVIATION / root_mean_square
    head = np.zeros_like(embedding)
    head[:, GROUP:] = np.roll(content, 1, axis=0) * (SUCCESSOR_LOGIT / normed / (hidden - GROUP))
    tensors = {EMBEDDING: embedding, "lm_head.weight": head}
    for layer in range(config["num_hidden_layers"]):
        weights = router_content(seed, layer, hidden - GROUP, target.experts)
        scores = content @ weights.T
        shares = target.shares[popularity_order(seed, layer, target.experts)]
        router = np.zeros((target.experts, hidden), dtype=np.float32)
        router[:, 0] = calibrated_biases(scores, shares, target.experts_per_tok) * (root_mean_square / CONSTANT)
        router[:, GROUP:] = weights / normed
        tensors[f"model.layers.{layer}.mlp.gate.weight"] = router
    return tensors


def named(profile: str, config: dict[str, Any]) -> Profile:
    """A named profile, mapped to the experts of `config`; ConfigError for a name that there is not.

    The models of the profiles have 128 experts of which a token takes 8, 64/4, 64/6 and 32/4: what is taken over is the
    sharpness (the exponent of the power law over the ranks of the experts that there are) and the misses of a cache of
    a quarter of them.
    """
    if profile not in MODELS:
        raise ConfigError(f"there is no profile {profile!r}; choose from {', '.join(MODELS)}")
    experts, each = config["num_experts"], config["num_experts_per_tok"]
    model = replace(load_model(profile), experts=experts, experts_per_tok=each)
    return named_profile(model, WORKLOAD, scheme_specs())


def walk_prompts(vocab: int, requests: int, tokens: int, seed: int) -> list[list[int]]:
    """Prompts that are as local as the answers: consecutive tokens from random places of the cycle."""
    starts = np.random.default_rng([seed, 3]).integers(vocab, size=requests)
    return [[int(start + i) % vocab for i in range(tokens)] for start in starts]


def skewed_weights(profile: str, dimensions: dict[str, int], seed: int) -> SkewedWeights:
    """All weights of one model, not written yet."""
    if dimensions["hidden_size"] < 2 * GROUP:
        raise ConfigError(f"hidden_size must be at least {2 * GROUP}, not {dimensions['hidden_size']}")
    config = qwen3_config(dimensions)
    target = target_of(named(profile, config), config["num_experts_per_tok"])
    correlation = correlation_for(target, seed)
    config[FIELD] = {
        "profile": profile,
        "workload": WORKLOAD,
        "seed": seed,
        "correlation": round(correlation, 4),
        "reuse": round(target.reuse, 4),
        "quarter_miss": round(target.quarter_miss, 4),
    }
    return SkewedWeights(Path(profile), config, seed, exact_tensors(config, target, correlation, seed))


def write_skewed(destination: Path, weights: SkewedWeights, experts_of: Checkpoint | None = None) -> None:
    """Make the folder, whole or not at all, with the experts' files of another one (`with_same_experts`) if given.

    Raises ConfigError when `destination` exists, UnsupportedModelError for an impossible shape.
    """
    shape, program = supported_model(weights.config)
    sources = model_sources(family_of(weights.config), weights.config, shape, program)
    layout, texts = layout_of(program), weights.small_files()
    destination.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(destination) as made:
        for name, text in texts.items():
            (made / name).write_bytes(text)
        own = layout if experts_of is None else replace(layout, file_bytes={DENSE_FILE: layout.file_bytes[DENSE_FILE]})
        with PieceWriter(made, own) as writer:
            write_dense(writer, sources, weights, layout, lambda _: None)
            if experts_of is None:
                write_experts(writer, sources, weights, layout, lambda _: None)
        crcs = writer.crcs
        if experts_of is not None:
            for name in (MSB_FILE, LSB_FILE):
                os.link(experts_of.path / name, made / name)
            crcs = crcs | {extent: crc for extent, crc in experts_of.crcs.items() if extent.file != DENSE_FILE}
        write_manifest(made, {"name": destination.stem, "files": {}, "sha256": ""}, program, texts, crcs)


def with_same_experts(folder: Path, weights: SkewedWeights) -> Checkpoint | None:
    """A model in `folder` that has the experts that would be made."""
    layout = layout_of(supported_model(weights.config)[1])
    for path in sorted(folder.glob("*.elmoe")):
        made = Checkpoint.open(path)
        if made.layout == layout and made.config.get(FIELD, {}).get("seed") == weights.seed:
            return made
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER)
    parser.add_argument("--profiles", default=",".join(MODELS))
    for name in SHAPE:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    dimensions = SHAPE | {name: arguments[name] for name in SHAPE if arguments[name] is not None}
    try:
        for profile in arguments["profiles"].split(","):
            destination = arguments["folder"] / f"{profile}.elmoe"
            refuse_existing(destination)  # the search for the routing takes its time
            weights = skewed_weights(profile, dimensions, arguments["seed"])
            write_skewed(destination, weights, with_same_experts(arguments["folder"], weights))
            print(f"{destination}: {json.dumps(weights.config[FIELD])}", flush=True)
    except ElmoeError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
