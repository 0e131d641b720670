"""How byte-level BPE tokenizers cut text into words, by the name that GGUF files give (``tokenizer.ggml.pre``).

A GGUF file holds vocabulary and merges but of this only a name, which llama.cpp's converter makes from a hash of what
the original tokenizer does. The patterns are those of the original ``tokenizer.json`` files, as
``src/llama-vocab.cpp`` of llama.cpp quotes them. Knows nothing about vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CJK = "\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff"
DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    rf"[{_CJK}]+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", rf"[{_CJK}]+")
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
LLAMA_CPP_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting text, and what else goes with it."""

    patterns: tuple[str, ...]
    """Applied one after the other, each to the pieces of the one before."""
    digits: bool = False
    """Every digit is then a word of its own: before the patterns, or after them (`digits_last`)."""
    digits_last: bool = False
    composed: bool = False
    """Text is brought into Unicode form NFC first."""
    whole_words: bool = False
    """A word that is in the vocabulary is that token, whatever the merges make of it."""
    begins: bool = False
    """Text begins with BOS when the file does not say."""

    def normalizer(self) -> dict[str, Any] | None:
        """As in ``tokenizer.json``."""
        return {"type": "NFC"} if self.composed else None

    def pre_tokenizer(self) -> dict[str, Any]:
        """As in ``tokenizer.json``."""
        splits: list[dict[str, Any]] = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in self.patterns
        ]
        if self.digits:
            digits = {"type": "Digits", "individual_digits": True}
            splits = [*splits, digits] if self.digits_last else [digits, *splits]
        to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {"type": "Sequence", "pretokenizers": [*splits, to_bytes]}


_LLAMA3 = PreTokenizer((LLAMA3,), whole_words=True, begins=True)
_QWEN2 = PreTokenizer((QWEN2,), composed=True)
_STARCODER = PreTokenizer((GPT2,), digits=True)

DEFAULT = "default"
"""What llama.cpp takes where a file gives no name: hardly what the original tokenizer did."""

PRE_TOKENIZERS = {
    "chatglm-bpe": PreTokenizer((LLAMA3,)),
    "deepseek-coder": PreTokenizer(DEEPSEEK_CODER, digits=True, digits_last=True),
    "deepseek-llm": PreTokenizer(DEEPSEEK_LLM, digits=True, digits_last=True),
    "deepseek-r1-qwen": _QWEN2,
    "deepseek-v3": PreTokenizer(DEEPSEEK_V3),
    DEFAULT: PreTokenizer(LLAMA_CPP_DEFAULT),
    "glm4": PreTokenizer((LLAMA3,), whole_words=True),
    "gpt-2": PreTokenizer((GPT2,)),
    "gpt-4o": PreTokenizer((O200K,), whole_words=True),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "olmo": PreTokenizer((GPT2,), composed=True),
    "qwen2": _QWEN2,
    "refact": _STARCODER,
    "starcoder": _STARCODER,
}
"""By ``tokenizer.ggml.pre``: those of the families that elmoe runs, and of models made from them."""
