"""Files of uint16 tokens in which END closes every document, and the rows of them that models are compared on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

END = 0
"""The token that ends a document, `<|endoftext|>`."""


def read_tokens(path: Path) -> np.ndarray:
    tokens = np.fromfile(path, dtype=np.uint16)
    if tokens.size == 0 or tokens[-1] != END:
        raise SystemExit(f"{path}: no tokens, or the last document has no end; write it anew with prepare.py")
    return tokens


def held_out_rows(folder: Path, name: str, T: int, most: int) -> np.ndarray:
    """[rows, T + 1] int64, evenly spread over NAME.val.bin: the rows on which every model is compared.

    Rows are stretches of the file, as in the starting model's own evaluation; a file shorter than a row gives none.
    """
    tokens = read_tokens(folder / f"{name}.val.bin").astype(np.int64)
    count = min(most, (len(tokens) - 1) // T)
    begins = np.linspace(0, len(tokens) - T - 1, count).astype(int) if count else []
    return np.array([tokens[begin : begin + T + 1] for begin in begins]).reshape(count, T + 1)


def held_out_documents(folder: Path, name: str, T: int, tokens: int) -> list[np.ndarray]:
    """The first documents of NAME.val.bin, each cut to T + 1 tokens, until they hold `tokens`: every one read alone.

    This is how a prompt is read, with nothing before it; the rows of `held_out_rows` begin inside documents and go on
    with others of the same source.
    """
    stored = read_tokens(folder / f"{name}.val.bin").astype(np.int64)
    ends = np.flatnonzero(stored == END) + 1
    documents: list[np.ndarray] = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        if end - begin > 1:
            documents.append(stored[begin : min(end, begin + T + 1)])
        if sum(map(len, documents)) >= tokens:
            break
    return documents


def mean_by_share(losses: dict[str, float], shares: dict[str, float]) -> dict[str, float]:
    """The sources' losses with their mean by share in front; sources without held-out text count for nothing."""
    mixture = sum(shares[source] * loss for source, loss in losses.items()) / sum(shares[source] for source in losses)
    return {"mixture": round(mixture, 4)} | {source: round(loss, 4) for source, loss in losses.items()}
