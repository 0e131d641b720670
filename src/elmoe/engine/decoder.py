"""One decode step over the sequences that are ready: draft trees, verify them in one pass, accept, update the pool.

A step without trees is plain decoding. Sequences may ask for trees of their own, or for none; they share the passes.
Knows nothing about kernels, queues or prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elmoe.engine.controller import Controller, Mode, Plan, Speculation
from elmoe.engine.cost_model import Pass, StepLog
from elmoe.engine.draft import DraftTree
from elmoe.engine.kv_cache import RowBuilder, deepest_tree
from elmoe.engine.passes import Passes
from elmoe.engine.request import Request
from elmoe.engine.sampler import Choices, Shape, TokenLogprobs, best_needed
from elmoe.engine.verify import Verdict, accept
from elmoe.engine.verify_set import choose_nodes, routing_of
from elmoe.trace.schema import PassKind


class Decoder:
    """Decodes with the passes and the controller of an engine."""

    def __init__(self, passes: Passes, controller: Controller) -> None:
        self._passes, self._controller = passes, controller
        self.depth = 0
        """Levels of the deepest tree of the last step."""

    def step(self, ready: list[Request], speculation: Speculation) -> None:
        """One AR or SD step over `ready`; speculation: of those that have none of their own."""
        planned = any(_follows_plan(request) for request in ready)
        plan = self._controller.plan(speculation, len(ready)) if planned else Plan(0, 1)
        tiered = self._passes.tiered
        drafts = tiered is None or tiered.ready
        log = StepLog(len(ready), chosen=all(request.generation.speculation is None for request in ready))
        shapes = [_tree_shape(request, speculation, plan, len(ready)) for request in ready]
        trees = [
            _new_tree(request, width, depth if drafts else 0)
            for request, (width, depth, _) in zip(ready, shapes, strict=True)
        ]
        self.depth = max(tree.depth for tree in trees)
        if tiered is not None:
            tiered.value_drafts(self._controller.draft_elasticity(speculation, self.depth))
        self._passes.stats.count_step(self.depth)
        self._draft(ready, trees, speculation, log)
        room = [min(verify, request.kv.spare_cells) for request, (*_, verify) in zip(ready, shapes, strict=True)]
        self._verify(ready, trees, self._verify_set(trees, room, speculation, log), log)
        self._controller.learn(speculation, log)

    def _draft(self, ready: list[Request], trees: list[DraftTree], speculation: Speculation, log: StepLog) -> None:
        """Grow all trees level by level: pool experts only, MSB planes only."""
        passes, quality = self._passes, speculation.quality
        best = _best_logits(ready, max(tree.width for tree in trees))
        for level in range(self.depth):
            builder = RowBuilder()
            frontiers = [tree.begin_level() for tree in trees]
            for request, tree, frontier in zip(ready, trees, frontiers, strict=True):
                builder.add_nodes(request.kv, tree, frontier, tree.forwarded)
            if not len(builder):
                return
            rows = builder.build(best)
            result, seconds = passes.forward(rows, quality)
            passes.pool.observe(result.experts)
            choices, first = Choices(result), 0
            for request, tree, frontier in zip(ready, trees, frontiers, strict=True):
                if not frontier:
                    continue
                if passes.tiered is not None:
                    tree.routing |= zip(frontier, result.experts[first : first + len(frontier)], strict=True)
                position, sampling = len(request.tokens) + level, request.generation.sampling
                tree.grow(
                    [
                        choices.propose(row, sampling, position, tree.width, _shape_at(request, tree, node))
                        for row, node in enumerate(frontier, first)
                    ]
                )
                first += len(frontier)
            passes.record(PassKind.DRAFT, level, rows, result, seconds, np.zeros(rows.count, dtype=np.bool_))
            log.end_pass(Pass(PassKind.DRAFT, rows.count, quality))

    def _verify(self, ready: list[Request], trees: list[DraftTree], verified: list[list[int]], log: StepLog) -> None:
        """One target pass over the `verified` nodes of each tree; accept, commit, emit, fill the pool."""
        passes = self._passes
        builder = RowBuilder()
        for request, tree, nodes in zip(ready, trees, verified, strict=True):
            if len(nodes) == 1:
                builder.add_run(request.kv, request.tokens[-1:], want_last=True)
            else:
                builder.add_nodes(request.kv, tree, nodes, nodes)
        asks_logprobs = any(request.generation.logprobs is not None for request in ready)
        rows = builder.build(0 if asks_logprobs else _best_logits(ready, 1))
        wanted = passes.pool.choose()
        announced = None
        if passes.tiered is not None:
            announced = routing_of(trees, verified, passes.backend.shape.experts)
        result, seconds = passes.forward(rows, announced=announced)
        plain = np.array([len(nodes) == 1 for nodes in verified for _ in nodes])
        passes.pool.observe(result.experts[plain])  # the routing of drafted tokens was observed while drafting
        choices, kept, first = Choices(result), list[bool](), 0
        for request, tree, nodes in zip(ready, trees, verified, strict=True):
            verdict = self._accept(request, tree, nodes, choices, first)
            kept += [node in verdict.path for node in nodes]
            first += len(nodes)
            if len(nodes) > 1 and request.generation.speculation is None:
                log.trees.append((tree.depth, len(verdict.path) - 1))
        kind = PassKind.VERIFY if rows.count > len(ready) else PassKind.AR
        passes.record(kind, 0, rows, result, seconds, np.array(kept))
        passes.pool.fill(wanted, result.read)
        log.end_pass(Pass(kind, rows.count))

    def _verify_set(
        self, trees: list[DraftTree], room: Sequence[int], speculation: Speculation, log: StepLog
    ) -> list[list[int]]:
        """Nodes to verify of each tree, at most `room` beside the root."""
        tiered = self._passes.tiered
        if tiered is None or not self.depth or not speculation.routing_aware:
            return [tree.best_nodes(count) for tree, count in zip(trees, room, strict=True)]
        return choose_nodes(trees, room, tiered.slow_tier(log.seconds))

    def _accept(self, request: Request, tree: DraftTree, nodes: list[int], choices: Choices, first: int) -> Verdict:
        """Take what the target agrees with into the request and its cache; `nodes` have the rows from `first` on."""
        row_of = {node: first + index for index, node in enumerate(nodes)}
        sampling = request.generation.sampling

        def target_choice(node: int) -> int:
            position = len(request.tokens) + tree.depths[node]
            return choices.choose(row_of[node], sampling, position, _shape_at(request, tree, node))

        verdict = accept(tree, nodes, target_choice)
        request.kv.commit_tree(self._passes.backend, nodes, verdict.path)
        counters, accepted = request.acceptance, len(verdict.path) - 1
        if len(nodes) == 1:
            counters.ar_steps += 1
        else:
            counters.verify_steps += 1
            counters.drafted += len(nodes) - 1
            counters.levels += max(tree.depths[node] for node in nodes)
            counters.tested += verdict.tested
            counters.accepted += accepted
        emitted = [*(tree.tokens[node] for node in verdict.path[1:]), verdict.bonus]
        logprobs: list[TokenLogprobs] = []
        if request.generation.logprobs is not None:
            count = request.generation.logprobs
            pairs = zip(verdict.path, emitted, strict=True)
            logprobs = [choices.logprobs(row_of[node], token, count) for node, token in pairs]
        request.emit(emitted, drafted=accepted, logprobs=logprobs)
        return verdict


def _follows_plan(request: Request) -> bool:
    """Whether the controller decides about its trees."""
    own = request.generation.speculation
    return own is None or own.mode is Mode.AUTO


def _tree_shape(request: Request, speculation: Speculation, plan: Plan, batch: int) -> tuple[int, int, int]:
    """(width, depth, tokens to verify) of a request's tree."""
    own = request.generation.speculation
    if own is None:
        return speculation.width, plan.depth, plan.verify
    fixed = own.fixed_depth(batch)
    if fixed is not None:
        return own.width, fixed, own.verify
    depth = min(plan.depth, own.depth)
    return own.width, depth, own.verify_at(depth)


def _new_tree(request: Request, width: int, depth: int) -> DraftTree:
    """A tree no deeper than the request can use and its scratch cells can hold (the settings may have changed)."""
    spare = request.kv.spare_cells
    return DraftTree(request.tokens[-1], width, min(depth, request.remaining - 1, deepest_tree(width, spare)))


def _best_logits(ready: list[Request], count: int) -> int:
    """`Rows.best` of a pass that picks `count` tokens per row: 0, all logits, if a request changes or samples them."""
    if not all(request.takes_best for request in ready):
        return 0
    return best_needed((request.generation.sampling for request in ready), count)


def _shape_at(request: Request, tree: DraftTree, node: int) -> Shape | None:
    """What happens to the logits after a node of the request's tree."""
    if request.shaper is None:
        return None
    return request.shaper.after([tree.tokens[other] for other in tree.lineage(node)[1:]])
