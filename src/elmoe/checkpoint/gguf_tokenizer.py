"""``tokenizer.json`` and the small files beside it, from the metadata of a GGUF file.

Two kinds of vocabulary are read: byte-level BPE (``gpt2``), whose way of cutting text into words is known by name
(`gguf_pre_tokenizers.py`), and SentencePiece BPE (``llama``), which has scores instead of merges. Source: llama.cpp,
``src/llama-vocab.cpp``; for merges from scores ``generate_merges`` of transformers' ``tokenization_utils_base.py``
(Apache-2.0). Where a tokenizer cannot be rebuilt, the model can still be run on token ids: a note says so, and what
else the metadata hold is kept. Knows nothing about weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import tokenizers

from elmoe.checkpoint.chat import named_template_file
from elmoe.checkpoint.gguf_header import FETCH
from elmoe.checkpoint.gguf_pre_tokenizers import DEFAULT, PRE_TOKENIZERS
from elmoe.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""``tokenizer.ggml.token_type``."""
NO_VOCABULARY = (None, "none", "no_vocab")
SPACE = "\u2581"
"""What SentencePiece writes for a space."""
DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}}
"""Special tokens where the file does not say."""
END_OF_TURN = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|return|>",
    "<|call|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Control tokens that end a turn in the families that elmoe runs. GGUF has no field for a list of them, so that
llama.cpp too goes by their names."""
PUT_IT_THERE = "put the original model's tokenizer.json into the .elmoe folder"
NAME_IT = "`gguf-new-metadata --pre-tokenizer NAME {} NEW.gguf` writes the name of the right one"

Json = dict[str, Any]


@dataclass(frozen=True)
class TokenizerFiles:
    """What metadata say about text."""

    files: dict[str, bytes]
    """Contents of ``tokenizer.json``, ``tokenizer_config.json``, ``generation_config.json`` and chat templates."""
    notes: tuple[str, ...]
    """What a person should know about them, one line each."""


def tokenizer_files(path: Path, metadata: Mapping[str, Any], vocab_size: int) -> TokenizerFiles:
    """The files that the metadata of the GGUF file `path` make, whose model has `vocab_size` tokens.

    Without a vocabulary in the file there is no ``tokenizer.json``, and none, but a note, for a tokenizer that cannot
    be rebuilt from what the file says; without a template there is none either. Raises CheckpointError for a damaged
    tokenizer and for one with more tokens than the model.
    """
    files: dict[str, bytes] = {}
    notes: list[str] = []
    if metadata.get("tokenizer.ggml.model") not in NO_VOCABULARY:
        vocabulary = _Vocabulary(path, metadata)
        if len(vocabulary.tokens) > vocab_size:
            raise CheckpointError(
                f"{path}: the tokenizer has {len(vocabulary.tokens)} tokens, the embedding {vocab_size} rows; {FETCH}"
            )
        try:
            files["tokenizer.json"] = _compact(vocabulary.tokenizer())
        except _CannotBeRebuiltError as error:
            notes.append(f"{path}: no tokenizer.json is made, so that prompts have to be token ids: {error}")
        notes += vocabulary.notes
        files["tokenizer_config.json"] = _pretty(vocabulary.special_tokens())
        files["generation_config.json"] = _pretty(vocabulary.generation())
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        files["chat_template.jinja"] = template.encode()
    for field, text in metadata.items():
        name = field.removeprefix("tokenizer.chat_template.")
        if name != field and isinstance(text, str) and re.fullmatch(r"\w+", name):
            files[named_template_file(name)] = text.encode()
    return TokenizerFiles(files, tuple(notes))


class _CannotBeRebuiltError(Exception):
    """The file does not say enough about its tokenizer, or says what elmoe does not know; the text says why."""


class _Vocabulary:
    """The ``tokenizer.ggml`` fields of one file."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path, self._metadata = path, metadata
        self.notes: list[str] = []
        for name in ("model", "pre"):
            if not isinstance(self._get(name), (str, NoneType)):
                raise self._broken(f"tokenizer.ggml.{name} is no string")
        self.kind: str = metadata["tokenizer.ggml.model"]
        self.tokens = self._list("tokens", str)
        types = self._get("token_type")
        self.types = [NORMAL] * len(self.tokens) if types is None else self._list("token_type", int)
        if len(self.types) != len(self.tokens):
            raise self._broken(f"{len(self.tokens)} tokens have {len(self.types)} types")
        self.ids: dict[str, int] = {}
        for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind != UNUSED:
                self.ids.setdefault(token, number)

    def tokenizer(self) -> Json:
        """``tokenizer.json``.

        Raises _CannotBeRebuiltError, and CheckpointError when the `tokenizers` package does not accept it.
        """
        if self.kind not in ("gpt2", "llama"):
            raise _CannotBeRebuiltError(
                f"tokenizer.ggml.model = {self.kind!r:.40} is not supported, elmoe reads gpt2 (byte-level BPE) and "
                f"llama (SentencePiece BPE); {PUT_IT_THERE}"
            )
        values = self._byte_level() if self.kind == "gpt2" else self._sentence_piece()
        whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": self._added(), **values}
        try:
            tokenizers.Tokenizer.from_str(json.dumps(whole))
        except Exception as error:  # the library raises plain Exception
            raise self._broken(str(error)) from None
        return whole

    def special_tokens(self) -> Json:
        """``tokenizer_config.json``: the special tokens that a chat template may name."""
        named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        found = {field: self._token(name) for field, name in named.items()}
        return {field: token for field, token in found.items() if token is not None}

    def generation(self) -> Json:
        """``generation_config.json``: what ends a text."""
        ends = {self._id(name) for name in ("eos", "eot", "eom")}
        ends |= {self.ids[text] for text in END_OF_TURN if text in self.ids and self.types[self.ids[text]] == CONTROL}
        values = {"bos_token_id": self._id("bos"), "eos_token_id": sorted(end for end in ends if end is not None)}
        return {field: value for field, value in values.items() if value not in (None, [])}

    def _byte_level(self) -> Json:
        name = self._get("pre")
        if not name:
            name = DEFAULT
            self.notes.append(
                f"{self._path} does not say how its tokenizer cuts text into words (tokenizer.ggml.pre): what "
                f"llama.cpp does then is taken, hardly what the original did; {NAME_IT.format(self._path.name)}"
            )
        if name not in PRE_TOKENIZERS:
            raise _CannotBeRebuiltError(
                f"tokenizer.ggml.pre = {name!r:.40}, by which llama.cpp knows how the tokenizer cuts text into words, "
                f"is not known to elmoe, which knows {', '.join(PRE_TOKENIZERS)}; {PUT_IT_THERE}, or, if one of these "
                f"is right, {NAME_IT.format(self._path.name)}"
            )
        cut = PRE_TOKENIZERS[name]
        merges = [_pair(merge) for merge in self._list("merges", str)] if self._get("merges") else []
        return {
            "normalizer": cut.normalizer(),
            "pre_tokenizer": cut.pre_tokenizer(),
            "post_processor": self._frame(begins=cut.begins),
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": self._bpe(merges) | {"ignore_merges": cut.whole_words},
        }

    def _sentence_piece(self) -> Json:
        """As `LlamaConverter` of transformers sets it up."""
        prefixed = self._flag("add_space_prefix", default=True)
        prepend = [{"type": "Prepend", "prepend": SPACE}] if prefixed else []
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        restore = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        return {
            "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
            "pre_tokenizer": None,
            "post_processor": self._frame(begins=True),
            "decoder": {
                "type": "Sequence",
                "decoders": [restore, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
            },
            "model": self._bpe(self._merges_from_scores())
            | {"unk_token": self._token("unknown"), "fuse_unk": True, "byte_fallback": BYTE in self.types},
        }

    def _bpe(self, merges: Sequence[tuple[str, str]]) -> Json:
        """The model; merges of pieces that are no tokens, which can never apply, are left out."""
        known = [pair for pair in merges if all(piece in self.ids for piece in (*pair, "".join(pair)))]
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": self.ids,
            "merges": known,
        }

    def _merges_from_scores(self) -> list[tuple[str, str]]:
        """Every way to put a token together from two, best score first."""
        normal = {token: number for token, number in self.ids.items() if self.types[number] == NORMAL}
        scores = self._list("scores", float) if self._get("scores") else [0.0] * len(self.tokens)
        if len(scores) != len(self.tokens):
            raise self._broken(f"{len(self.tokens)} tokens have {len(scores)} scores")
        if len(normal) > 1 and len({scores[number] for number in normal.values()}) == 1:
            raise _CannotBeRebuiltError(
                "its tokens have no scores, or all the same, which does not say what pieces join first; "
                f"{PUT_IT_THERE}, or convert the model again from a folder that has its tokenizer.model"
            )
        ranked: list[tuple[float, int, int, str, str]] = []
        for token, number in normal.items():
            pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            splits = sorted(
                (normal[left], normal[right]) for left, right in pairs if left in normal and right in normal
            )
            for left, right in ((self.tokens[first], self.tokens[second]) for first, second in splits):
                ranked.append((scores[number], len(left), len(right), left, right))
        ranked.sort(key=lambda entry: entry[:3], reverse=True)
        return [(left, right) for *_, left, right in ranked]

    def _added(self) -> list[Json]:
        """Tokens that text is searched for before anything else."""
        return [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": self.types[number] != USER_DEFINED,
            }
            for token, number in self.ids.items()
            if token and self.types[number] in (UNKNOWN, CONTROL, USER_DEFINED)
        ]

    def _frame(self, begins: bool) -> Json | None:
        """The post-processor, which puts BOS before a text and EOS behind it, where that is wanted."""
        ends = {
            "bos": self._token("bos") if self._flag("add_bos_token", default=begins) else None,
            "eos": self._token("eos") if self._flag("add_eos_token", default=False) else None,
        }
        special = {text: self.ids[text] for text in ends.values() if text is not None}
        if not special:
            return None

        def sequence(name: str) -> list[Json]:
            whole = [ends["bos"], None, ends["eos"]]
            kind = 0 if name == "A" else 1
            texts = [{"SpecialToken": {"id": text, "type_id": kind}} if text else {} for text in whole]
            texts[1] = {"Sequence": {"id": name, "type_id": kind}}
            return [text for text in texts if text]

        return {
            "type": "TemplateProcessing",
            "single": sequence("A"),
            "pair": [*sequence("A"), *sequence("B")],
            "special_tokens": {
                text: {"id": text, "ids": [number], "tokens": [text]} for text, number in special.items()
            },
        }

    def _id(self, name: str) -> int | None:
        """Id of the special token `name`, None where there is none."""
        value = self._get(f"{name}_token_id")
        if value is None:
            value = DEFAULT_IDS.get(self.kind, {}).get(name, len(self.tokens))
            return value if value < len(self.tokens) else None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise self._broken(f"tokenizer.ggml.{name}_token_id = {value!r} is no token")
        return value

    def _token(self, name: str) -> str | None:
        number = self._id(name)
        return None if number is None or self.types[number] == UNUSED else self.tokens[number]

    def _get(self, name: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{name}")

    def _flag(self, name: str, default: bool) -> bool:
        value = self._get(name)
        return default if value is None else bool(value)

    def _list(self, name: str, kind: type) -> list[Any]:
        """A field that is a list of things of a type."""
        value = self._get(name)
        if not isinstance(value, list) or not value or not all(isinstance(item, kind) for item in value):
            raise self._broken(f"tokenizer.ggml.{name} is no list of {kind.__name__}")
        return value

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: the tokenizer is damaged ({what}); {FETCH}")


def _pair(merge: str) -> tuple[str, str]:
    """A merge is two pieces and a space between them; pieces hold no spaces, but the first may be one."""
    left, _, right = merge[1:].partition(" ")
    return merge[:1] + left, right


def _compact(values: Json) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def _pretty(values: Json) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
