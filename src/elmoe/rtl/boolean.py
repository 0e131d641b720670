"""Boolean functions of Liberty files, with all the ways to write not, and, or; "^" is exclusive or."""

from __future__ import annotations

import re
from collections.abc import Mapping

from elmoe.errors import ConfigError

Tree = str | tuple[str, "Tree"] | tuple[str, "Tree", "Tree"]
_TOKEN = re.compile(r"\w+|[!()'*&+|^]")


def parse_function(text: str) -> Tree:
    """A tree of names and ``('~', x)``, ``('&', x, y)``, ``('^', x, y)``, ``('|', x, y)``. Raises ConfigError."""
    tokens = _TOKEN.findall(text)
    tree, rest = _sum(tokens)
    if rest:
        raise ConfigError(f"cannot read the Liberty function {text!r} from {rest[0]!r} on")
    return tree


def evaluate(tree: Tree, values: Mapping[str, int]) -> int:
    """0 or 1."""
    if isinstance(tree, str):
        return int(tree) if tree in {"0", "1"} else values[tree]
    operands = [evaluate(operand, values) for operand in tree[1:]]
    if tree[0] == "~":
        return 1 - operands[0]
    x, y = operands
    return {"&": x & y, "|": x | y, "^": x ^ y}[tree[0]]


def verilog(tree: Tree) -> str:
    """The same as a Verilog expression."""
    if isinstance(tree, str):
        return f"1'b{tree}" if tree in {"0", "1"} else tree
    if len(tree) == 2:
        return f"~{verilog(tree[1])}"
    return f"({verilog(tree[1])} {tree[0]} {verilog(tree[2])})"


def _sum(tokens: list[str]) -> tuple[Tree, list[str]]:
    tree, tokens = _parity(tokens)
    while tokens and tokens[0] in "+|":
        right, tokens = _parity(tokens[1:])
        tree = ("|", tree, right)
    return tree, tokens


def _parity(tokens: list[str]) -> tuple[Tree, list[str]]:
    tree, tokens = _product(tokens)
    while tokens and tokens[0] == "^":
        right, tokens = _product(tokens[1:])
        tree = ("^", tree, right)
    return tree, tokens


def _product(tokens: list[str]) -> tuple[Tree, list[str]]:
    tree, tokens = _factor(tokens)
    while tokens and tokens[0] not in "+|^)":
        right, tokens = _factor(tokens[1:] if tokens[0] in "*&" else tokens)
        tree = ("&", tree, right)
    return tree, tokens


def _factor(tokens: list[str]) -> tuple[Tree, list[str]]:
    if not tokens:
        raise ConfigError("a Liberty function ends too early")
    head, tokens = tokens[0], tokens[1:]
    tree: Tree = head
    if head == "!":
        tree, tokens = _factor(tokens)
        return ("~", tree), tokens
    if head == "(":
        tree, tokens = _sum(tokens)
        tokens = tokens[1:]
    while tokens and tokens[0] == "'":
        tree, tokens = ("~", tree), tokens[1:]
    return tree, tokens
