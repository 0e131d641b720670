"""Where a `Part` of a Hugging Face checkpoint lies in a GGUF file: names, shapes and orders, no bytes.

Names follow the `gguf` package's tables. llama.cpp's converter also lays some tensors out anew, which is undone here:

- The experts of a layer are one tensor per matrix, [E, F, D] or [E, D, F], gate and up apart, none transposed
  (GPT-OSS and Granite have them fused; GPT-OSS transposed and with gate and up rows alternating).
- Latent attention (arch ``deepseek2``): ``kv_b_proj`` is split into ``attn_k_b`` [H, r, nope], transposed per head,
  and ``attn_v_b`` [H, v, r]. Files from before April 2025 have it whole.
- Query and key rows of the archs ``llama`` and ``granitemoe`` are reordered, per head, from HF's halves (i, i + n/2)
  to pairs (2i, 2i + 1), because llama.cpp rotates pairs there (`LlamaModel.permute`). The archs ``qwen2moe``,
  ``qwen3moe``, ``olmoe`` and ``gpt-oss`` are rotated in halves and keep HF's order; ``deepseek2`` is rotated in pairs,
  which is HF's own order for it, so that the part's order holds.

Source: llama.cpp, ``conversion/*.py`` and ``llama_model_rope_type``. Knows nothing about files.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from elmoe.errors import InternalError
from elmoe.models.source_tensors import Part, halves_order

PAIRED_ARCHS = ("llama", "granitemoe")
"""Archs whose converter turns halves into pairs."""

EXPERT_KINDS = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
ONE_EXPERT = re.compile(r"model\.layers\.(\d+)\.\w+\.experts\.(\d+)\.(\w+)\.weight")
ALL_GATE_UP = re.compile(r"model\.layers\.(\d+)\.\w+\.(?:experts\.gate_up_proj|input_linear)(?:\.weight)?(_bias)?")
ALL_DOWN = re.compile(r"model\.layers\.(\d+)\.\w+\.(?:experts\.down_proj|output_linear)(?:\.weight)?(_bias)?")
QUERY_OR_KEY = re.compile(r".*\.self_attn\.[qk]_proj\.(weight|bias)")
RENAMED = {".e_score_correction_bias": ".e_score_correction.bias", ".sinks": ".sinks.weight"}
"""How the converter spells what ends so, before it looks the name up."""


@dataclass(frozen=True, eq=False)
class GgufNames:
    """The names of one file."""

    arch: str
    blocks: int
    experts: int
    head_dim: int
    """Rows of a query or key head."""
    present: Collection[str]
    """Tensors that the file has: several layouts of the same thing are about."""

    def place(self, part: Part) -> Part:
        """The same rows in terms of the file."""
        if found := ONE_EXPERT.fullmatch(part.tensor):
            return self._expert(part, int(found[1]), EXPERT_KINDS[found[3]], int(found[2]))
        if found := ALL_GATE_UP.fullmatch(part.tensor):
            second = part.first == 1 if part.step == 2 else part.first > 0
            return self._expert(part, int(found[1]), "up" if second else "gate", part.slab, bool(found[2]))
        if found := ALL_DOWN.fullmatch(part.tensor):
            return self._expert(part, int(found[1]), "down", part.slab, bool(found[2]))
        if part.tensor.endswith(".kv_b_proj.weight"):
            return self._latent_up(part)
        name = part.tensor
        for ending, spelling in RENAMED.items():
            name = name.removesuffix(ending) + spelling if name.endswith(ending) else name
        named = replace(part, tensor=self._name(name))
        if self.arch in PAIRED_ARCHS and QUERY_OR_KEY.fullmatch(part.tensor):
            return replace(named, order=halves_order(self.head_dim))
        return named

    def _expert(self, part: Part, layer: int, kind: str, expert: int, bias: bool = False) -> Part:
        """Gate, up or down rows of one expert."""
        name = self._tensor(f"FFN_{kind.upper()}_EXP", layer)
        if bias:
            return Part(f"{name}.bias", (self.experts, part.rows), part.rows, expert, self.experts)
        fused = f"{self._tensor('FFN_GATE_UP_EXP', layer)}.weight"
        alone = f"blk.{layer}.ffn_{kind}.{expert}.weight"
        if alone in self.present:  # files from before April 2024
            return Part(alone, (part.rows, part.width), part.rows)
        if kind != "down" and fused in self.present:
            shape = self.experts, 2 * part.rows, part.width
            return Part(fused, shape, part.rows, expert, self.experts, first=0 if kind == "gate" else part.rows)
        return Part(f"{name}.weight", (self.experts, part.rows, part.width), part.rows, expert, self.experts)

    def _latent_up(self, part: Part) -> Part:
        """Rows of one head of ``kv_b_proj``: of keys, transposed, or of values."""
        name = self._name(part.tensor)
        key_up = name.replace("attn_kv_b", "attn_k_b")
        if key_up not in self.present:
            return replace(part, tensor=name)
        split = key_up if part.transposed else name.replace("attn_kv_b", "attn_v_b")
        return Part(split, (part.slabs, part.rows, part.width), part.rows, part.slab, part.slabs)

    def _name(self, name: str) -> str:
        """By the package's table."""
        found: str | None = self._table.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise InternalError(f"GGUF's {self.arch} has no name for the tensor {name}")
        return found

    def _tensor(self, kind: str, layer: int) -> str:
        return str(self._package.TENSOR_NAMES[self._package.MODEL_TENSOR[kind]]).format(bid=layer)

    @cached_property
    def _table(self) -> Any:
        arch = next(key for key, name in self._package.MODEL_ARCH_NAMES.items() if name == self.arch)
        return self._package.get_tensor_name_map(arch, self.blocks)

    @cached_property
    def _package(self) -> Any:
        import gguf  # a fifth of a second, which other models need not wait for

        return gguf
