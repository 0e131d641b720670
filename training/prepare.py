#!/usr/bin/env python3
"""Turn documents into token files: NAME.train.bin and NAME.val.bin of uint16 tokens, END after each document.

    python training/prepare.py text CORPUS DATA --tokenizer FILE     # CORPUS/NAME.txt, documents end with <|endoftext|>
    python training/prepare.py chat DATA --tokenizer FILE --documents 1000000 --prompts PROMPTS

The first documents of a source (1 %, 4 to 400) are held out: they are never trained on. `chat` writes what
training/chat_makers makes up; common short documents repeat, as they should. Documents that share 13 words in a row
with a prompt of PROMPTS (.jsonl files of {"turns": [...]} lines), by which models are judged, are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from chat_makers.documents import Writer
from token_files import END

SEPARATOR = "<|endoftext|>\n"
BLOCK = 2000
"""Documents that are encoded together."""
OVERLAP_WORDS = 13
HELD_OUT_ONE_IN = 512
"""Made-up chats, by a hash of their text."""


def encode(tokenizer: Tokenizer, documents: Iterable[str]) -> Iterator[np.ndarray]:
    """Tokens of every document with END behind, in order."""
    left = iter(documents)
    while block := list(islice(left, BLOCK)):
        for encoded in tokenizer.encode_batch(block):
            yield np.array([*encoded.ids, END], dtype=np.uint16)


def write_tokens(path: Path, documents: Iterable[np.ndarray]) -> int:
    """Written under a temporary name, then renamed. Returns the number of tokens."""
    temporary = path.with_suffix(".tmp")
    count = 0
    with temporary.open("wb") as file:
        for tokens in documents:
            file.write(tokens.tobytes())
            count += len(tokens)
    temporary.replace(path)
    return count


def prepare_text(options: argparse.Namespace) -> None:
    """Every .txt file of a folder."""
    tokenizer = Tokenizer.from_file(options.tokenizer)
    files = sorted(Path(options.corpus).glob("*.txt"))
    if not files:
        raise SystemExit(f"{options.corpus}: no .txt files")
    for file in files:
        documents = [text for text in file.read_text(encoding="utf-8").split(SEPARATOR) if text.strip()]
        held_out = max(4, min(400, len(documents) // 100))
        parts = {"val": documents[:held_out], "train": documents[held_out:]}
        counts = {
            part: write_tokens(options.data / f"{file.stem}.{part}.bin", encode(tokenizer, texts))
            for part, texts in parts.items()
        }
        print(file.stem, counts, flush=True)


def word_runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[at : at + OVERLAP_WORDS]) for at in range(len(words) - OVERLAP_WORDS + 1)}


def evaluation_runs(folder: str | None) -> set[tuple[str, ...]]:
    """Every run of 13 words in the prompts of a folder."""
    if folder is None:
        return set()
    lines = [line for file in sorted(Path(folder).glob("*.jsonl")) for line in file.read_text().splitlines()]
    if not lines:
        raise SystemExit(f"{folder}: no .jsonl files of prompts")
    return {run for line in lines for turn in json.loads(line)["turns"] for run in word_runs(turn)}


def is_held_out(document: str) -> bool:
    """By its text alone, so that no process needs to know what another one made up."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=8).digest()) % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class ChatPart:
    """What one process makes up, from a seed of its own, and where its token files go."""

    options: argparse.Namespace
    forbidden: set[tuple[str, ...]]
    number: int

    def path(self, part: str) -> Path:
        return self.options.data / f"chat.{self.number}.{part}.bin"

    def write(self) -> dict[str, int]:
        """Both files; returns the number of tokens in each."""
        tokenizer = Tokenizer.from_file(self.options.tokenizer)
        writer, source = Writer(), random.Random(self.options.seed * 1000 + self.number)
        made = (writer.document(source) for _ in range(self.options.documents // self.options.processes))
        clean = [text for text in made if not self.forbidden or self.forbidden.isdisjoint(word_runs(text))]
        held_out = dict.fromkeys(text for text in clean if is_held_out(text))
        trained = (text for text in clean if not is_held_out(text))
        return {
            "val": write_tokens(self.path("val"), encode(tokenizer, held_out)),
            "train": write_tokens(self.path("train"), encode(tokenizer, trained)),
        }


def prepare_chat(options: argparse.Namespace) -> None:
    """Parts by several processes, then one file of each kind."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    forbidden = evaluation_runs(options.prompts)
    parts = [ChatPart(options, forbidden, number) for number in range(options.processes)]
    with ProcessPoolExecutor(options.processes) as pool:
        counts = list(pool.map(ChatPart.write, parts))
    for kind in ("val", "train"):
        temporary = options.data / f"chat.{kind}.tmp"
        with temporary.open("wb") as whole:
            for part in parts:
                whole.write(part.path(kind).read_bytes())
                part.path(kind).unlink()
        temporary.replace(options.data / f"chat.{kind}.bin")
    print("chat", {kind: sum(count[kind] for count in counts) for kind in ("val", "train")}, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    text = verbs.add_parser("text")
    text.add_argument("corpus", help="folder of .txt files")
    chat = verbs.add_parser("chat")
    chat.add_argument("--documents", type=int, default=1_000_000, help="how many are made up")
    chat.add_argument("--prompts", help="folder of .jsonl files whose prompts must not be in the text")
    chat.add_argument("--processes", type=int, default=os.cpu_count())
    chat.add_argument("--seed", type=int, default=1)
    for verb in (text, chat):
        verb.add_argument("data", type=Path, help="folder of the token files")
        verb.add_argument("--tokenizer", required=True, help="tokenizer.json")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if not Path(options.tokenizer).is_file():
        raise SystemExit(f"{options.tokenizer}: no such file; --tokenizer is the model's tokenizer.json")
    options.data.mkdir(parents=True, exist_ok=True)
    {"text": prepare_text, "chat": prepare_chat}[options.verb](options)


if __name__ == "__main__":
    main()
