"""Pictures about decoding: one Elastic-SD step and its time, the token tree. The tree is grown and judged by elmoe's
own functions on made-up probabilities, the times are the simulator's.
"""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

from elmoe.engine.draft import DraftTree
from elmoe.engine.verify import accept
from elmoe.sim.model import load_model
from elmoe.sim.profile import named_profile, scheme_specs
from elmoe.sim.run import Query, rows
from elmoe.sim.spec import load_machine
from svg import Picture

MODEL, BATCH, HB_GB = "qwen3-30b-a3b", 16, 8


def elastic_sd_step() -> Picture:
    """Draft, verify, accept, pool update; what each reads and from where; what it takes."""
    pic = Picture(760, 470, "One Elastic-SD step: draft, verify, accept, pool update")
    boxes = (
        (
            20,
            "draft",
            "draft, d passes",
            [
                "a level of the tree each;",
                "experts of the pool only,",
                "weights by their MSBs;",
                "routing counted as wished",
            ],
        ),
        (
            205,
            "target",
            "verify, one pass",
            ["the whole tree at once,", "full weights and routing;", "each expert that is", "needed read once"],
        ),
        (
            390,
            "plain",
            "accept",
            ["follow the target's own", "choices through the tree;", "the first one outside it", "is the bonus token"],
        ),
        (
            575,
            "fast",
            "pool update",
            ["hot experts enter as", "verify reads them anyway:", "nothing is fetched for", "the pool alone"],
        ),
    )
    pic.text(20, 26, "One step of a sequence", "bold")
    for x, kind, name, lines in boxes:
        pic.box(x, 44, 150, 36, kind, name, "bold")
        for number, line in enumerate(lines):
            pic.text(x + 4, 100 + 16 * number, line, "small soft")
        if x < 575:
            pic.line((x + 150, 62), (x + 183, 62))
    pic.line((650, 168), (650, 186), (95, 186), (95, 168))
    pic.text(380, 202, "next step: the pool was chosen from the counts before verify began", "small soft", "middle")
    pic.box(20, 222, 150, 40, "fast", "dense MSB, pool MSB,\nKV: fast tier only", "small")
    pic.box(205, 222, 150, 40, "slow", "+ LSB of pool experts,\nother experts: slow tier", "small")
    pic.text(390, 238, "Only verify waits for the slow tier,", "small")
    pic.text(390, 256, "once for all tokens of the step.", "small")
    _time(pic)
    return pic


def _time(pic: Picture) -> None:
    plain, elastic = _simulated()
    draft, verify = elastic["phases"]["draft"], elastic["phases"]["verify"]
    tokens = 1 + elastic["mean_accepted_length"]
    step, ar = draft["ms"] + verify["ms"], plain["latency_ms_per_token"]
    scale = 640 / max(step, tokens * ar)
    pic.text(
        20, 306, f"Its time, simulated: {MODEL}, {HB_GB} GB of HB, batch {BATCH}, context 1024, per sequence", "bold"
    )
    each = draft["ms"] / draft["count"]
    pic.text(
        20,
        334,
        f"Elastic-SD: {draft['count']} drafts of {each:.1f} ms and a verify pass: {tokens:.1f} tokens in {step:.0f} ms",
        "small",
    )
    pic.box(20, 342, draft["ms"] * scale, 28, "draft", f"{draft['ms']:.0f}", "small")
    pic.box(20 + draft["ms"] * scale, 342, verify["ms"] * scale, 28, "target", f"verify {verify['ms']:.0f}", "small")
    pic.text(20, 398, f"plain decoding with the same memory: {tokens:.1f} tokens in {tokens * ar:.0f} ms", "small")
    for number in range(int(tokens)):
        pic.box(20 + number * ar * scale, 406, ar * scale, 28, "plain", f"{ar:.0f}", "small")
    rest = tokens - int(tokens)
    pic.box(20 + int(tokens) * ar * scale, 406, rest * ar * scale, 28, "plain", "", "dashed")
    pic.text(20, 458, "speedup = (1 + accepted) x t_AR / (d x t_draft + t_verify)", "mono small")
    pic.text(740, 458, f"here {tokens * ar / step:.2f}", "mono small bold", "end")


def _simulated() -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain decoding (no draft in HB) and Elastic-SD on the paper's machine."""
    model = load_model(MODEL)
    profile = named_profile(model, "mt-bench", scheme_specs())
    plain = Query(load_machine("elmoe-3d").with_hb_gb(HB_GB), model, profile, batches=(BATCH,))
    plain_row, elastic_row = rows([plain, replace(plain, scheme="elastic", mode="sd")])
    return plain_row, elastic_row


ROOT = "The"
CHANCES = {
    "The": (("dog", 0.6), ("cat", 0.3)),
    "The dog": (("ran", 0.7), ("sat", 0.2)),
    "The cat": (("sat", 0.5), ("ran", 0.4)),
    "The dog ran": (("home", 0.6), ("away", 0.3)),
    "The cat sat": (("down", 0.8), ("there", 0.1)),
}
"""What the draft of the picture proposes after each text: width 2."""
TARGET = {"The": "dog", "The dog": "ran", "The dog ran": "away", "The dog ran away": "from"}
VERIFIED = 6


def token_tree() -> Picture:
    """A tree, what is verified of it, what is accepted; and who sees whom in the verify pass."""
    tree, words = _grown()
    nodes = tree.best_nodes(VERIFIED)
    texts = [" ".join(words[tree.tokens[each]] for each in tree.lineage(node)) for node in range(len(tree.tokens))]
    number = {word: index for index, word in enumerate(words)}
    verdict = accept(tree, nodes, lambda node: number[TARGET[texts[node]]])
    pic = Picture(760, 440, "A draft tree, the verified nodes, the accepted path and the attention mask")
    pic.text(20, 26, "Width 2, depth 3, 6 nodes verified", "bold")
    places = _places(tree)
    for node in range(1, len(tree.tokens)):
        (x0, y0), (x1, y1) = places[tree.parents[node]], places[node]
        pic.line((x0, y0 + 20), (x1, y1 - 20), style="" if node in nodes else "dashed")
    for node, (x, y) in enumerate(places):
        kind = "fast" if node in verdict.path else "target" if node in nodes else "plain"
        pic.box(x - 27, y - 19, 54, 38, kind, words[tree.tokens[node]], "small" + ("" if node in nodes else " dashed"))
        if node:
            pic.text(x + 30, y + 5, f"{2.718281828 ** tree.scores[node]:.2f}".lstrip("0"), "small soft")
    x, y = places[verdict.path[-1]]
    pic.line((x, y + 20), (x, y + 46))
    pic.box(x - 32, y + 48, 64, 34, "draft", words[verdict.bonus], "small bold")
    pic.text(x + 38, y + 70, "bonus", "small soft")
    _tree_key(pic, 20, 414, len(verdict.path) - 1)
    _mask(pic, 490, tree, nodes, words)
    return pic


def _grown() -> tuple[DraftTree, list[str]]:
    words = [ROOT, *dict.fromkeys(word for chances in CHANCES.values() for word, _ in chances), "from"]
    tree = DraftTree(0, width=2, depth=3)
    while frontier := tree.begin_level():
        texts = [" ".join(words[tree.tokens[each]] for each in tree.lineage(node)) for node in frontier]
        tree.grow(
            [
                ([words.index(word) for word, _ in CHANCES[text]], [log(chance) for _, chance in CHANCES[text]])
                for text in texts
            ]
        )
    return tree, words


def _places(tree: DraftTree) -> list[tuple[float, float]]:
    """Where the nodes stand: by level, in the order in which they were made."""
    made: list[tuple[float, float]] = []
    for node, depth in enumerate(tree.depths):
        level = [each for each, other in enumerate(tree.depths) if other == depth]
        made.append((40 + 380 * (level.index(node) + 0.5) / len(level), 70 + 82 * depth))
    return made


def _tree_key(pic: Picture, x: float, y: float, accepted: int) -> None:
    for place, (kind, style, what) in enumerate(
        (
            ("fast", "", f"accepted ({accepted})"),
            ("target", "", "verified, rejected"),
            ("plain", "dashed", "not verified"),
        )
    ):
        pic.box(x + 150 * place, y, 18, 18, kind, "", style)
        pic.text(x + 150 * place + 26, y + 14, what, "small")


def _mask(pic: Picture, x: float, tree: DraftTree, nodes: list[int], words: list[str]) -> None:
    """Rows of the verify pass against the cells that they see."""
    pic.text(x, 26, "One verify pass: who sees what", "bold")
    pic.box(x + 50, 84, 34, 26 * len(nodes), "plain", "", "")
    pic.text(x + 67, 76, "text", "small soft", "middle")
    for row, node in enumerate(nodes):
        y = 84 + 26 * row
        pic.text(x + 42, y + 18, words[tree.tokens[node]], "small", "end")
        for column, other in enumerate(nodes):
            sees = other in tree.lineage(node)
            if sees:
                pic.box(x + 88 + 24 * column, y + 2, 22, 22, "target")
            else:
                pic.box(x + 88 + 24 * column, y + 2, 22, 22, "plain", "", "dashed")
    for number, line in enumerate(
        (
            "Every row sees the text so far and its",
            "own path, in order: what plain decoding",
            "would see there. So the target's choice",
            "after a row is that of plain decoding.",
        )
    ):
        pic.text(x, 296 + 17 * number, line, "small soft")
