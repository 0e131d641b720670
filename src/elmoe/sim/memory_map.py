"""What lies in HB and what in EXT, per scheme: dense weights, KV cache, the draft's own weights, the expert pool.

Order of the paper: static weights first, then KV, then what else the draft needs, the rest is the expert cache. A
machine without HB keeps everything outside. Knows nothing about time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elmoe.errors import CapacityError
from elmoe.models.shape import KV_BYTES_PER_ELEMENT
from elmoe.sim.model import BYTES_MSB, SimModel
from elmoe.sim.profile import SchemeSpecs
from elmoe.sim.spec import Machine

Floats = npt.NDArray[np.float64]

FUSED_FEATURES = 3
"""EAGLE-3 fuses the hidden states of three target layers."""
DRAFT_VOCABULARY = 32_000


@dataclass(frozen=True)
class Draft:
    """A draft model of its own: bytes of weights and of KV per cached token, multiply-accumulates."""

    weight_bytes: float = 0.0
    kv_bytes_per_token: float = 0.0
    params: float = 0.0
    attention_macs: float = 0.0


@dataclass(frozen=True)
class MemoryMap:
    """Bytes by place. Arrays [N] over (batch, context) points; E experts per layer."""

    dense: float
    """Static weights in HB, or in EXT where the machine has no HB."""
    in_hb: bool
    kv_hb: Floats
    kv_ext: Floats
    draft: Draft
    draft_hb: Floats
    """The draft model's weights and KV in HB."""
    draft_ext: Floats
    pool_hb: Floats
    """Left for experts."""
    whole_experts: Floats
    """Experts per MoE layer that the pool holds at full precision."""
    draft_experts: Floats
    """Experts per MoE layer that the pool holds as the draft reads them (MSB planes; a 4-bit copy)."""
    ext: Floats
    """All bytes in EXT."""

    def columns(self) -> dict[str, Floats]:
        """Bytes by place."""
        return {
            "hb_dense": np.full_like(self.ext, self.dense if self.in_hb else 0.0),
            "hb_kv": self.kv_hb,
            "hb_draft": self.draft_hb,
            "hb_experts": self.pool_hb,
            "ext_kv": self.kv_ext,
            "ext_draft": self.draft_ext,
            "ext_total": self.ext,
        }


def draft_of(model: SimModel, scheme: str, specs: SchemeSpecs) -> Draft:
    """The draft weights that a scheme adds to the target."""
    if scheme == "eagle":
        return _eagle_head(model, specs)
    if scheme == "slm":
        slm = specs.slm
        return Draft(
            weight_bytes=slm.parameters * slm.bytes_per_weight,
            kv_bytes_per_token=slm.kv_elements * KV_BYTES_PER_ELEMENT,
            params=slm.parameters,
            attention_macs=slm.attention_macs,
        )
    if scheme == "quant" and not model.mxfp4_experts:
        return Draft(weight_bytes=model.dense_params * BYTES_MSB, params=model.dense_params)
    return Draft()


def memory_map(
    machine: Machine, model: SimModel, scheme: str, batch: Floats, context: Floats, specs: SchemeSpecs
) -> MemoryMap:
    """Place everything. Raises CapacityError where dense weights do not fit HB, or all of it not EXT."""
    draft = draft_of(model, scheme, specs)
    tokens = batch * context
    kv = batch * model.kv_bytes(context)
    draft_bytes = draft.weight_bytes + tokens * draft.kv_bytes_per_token
    experts_ext = model.moe_layers * model.experts * model.expert_bytes
    copy = model.moe_layers * model.experts * model.expert_draft_bytes
    copy = copy if scheme == "quant" and not model.mxfp4_experts else 0.0
    embedding_hb = specs.placement.embedding == "hb"
    static = model.dense_bytes + (model.embedding_bytes if embedding_hb else 0.0)
    capacity = 0.0 if machine.hb is None else machine.hb.capacity_gb * 1e9
    if machine.hb is not None and static > capacity:
        raise CapacityError(
            f"{model.name}: dense weights of {static / 1e9:.2f} GB do not fit {capacity / 1e9:g} GB of HB; "
            f"give --hb-gb at least {np.ceil(static / 1e9 * 4) / 4:g}"
        )
    left = np.maximum(capacity - static, 0.0)
    kv_hb = np.minimum(kv, left) if machine.hb is not None else np.zeros_like(kv)
    draft_hb = np.minimum(draft_bytes, left - kv_hb)
    pool = left - kv_hb - draft_hb
    if machine.hb is None:
        draft_hb, pool = np.zeros_like(kv), np.zeros_like(kv)
    ext = experts_ext + copy + (kv - kv_hb) + (draft_bytes - draft_hb)
    ext = ext + (0.0 if machine.hb is not None else model.dense_bytes)
    ext = ext + (0.0 if machine.hb is not None and embedding_hb else model.embedding_bytes)
    _check_ext(machine, model, ext, batch, context)
    per_layer = pool / model.moe_layers
    return MemoryMap(
        dense=static,
        in_hb=machine.hb is not None,
        kv_hb=kv_hb,
        kv_ext=kv - kv_hb,
        draft=draft,
        draft_hb=draft_hb,
        draft_ext=draft_bytes - draft_hb,
        pool_hb=np.minimum(pool, experts_ext),
        whole_experts=np.minimum(model.experts, per_layer / model.expert_bytes),
        draft_experts=np.minimum(model.experts, per_layer / model.expert_draft_bytes),
        ext=ext,
    )


def _check_ext(machine: Machine, model: SimModel, ext: Floats, batch: Floats, context: Floats) -> None:
    room = machine.ext.capacity_gb * 1e9
    if np.any(ext > room):
        worst = int(np.argmax(ext))
        raise CapacityError(
            f"{model.name}: {ext[worst] / 1e9:.1f} GB at batch {batch[worst]:g} and context {context[worst]:g} "
            f"do not fit {machine.ext.capacity_gb:g} GB of external memory; lower one of them"
        )


def _eagle_head(model: SimModel, specs: SchemeSpecs) -> Draft:
    """EAGLE-3 head in the target's sizes: grouped attention of 128-wide heads over twice the hidden size, an MLP of
    three times the hidden size. For models with latent attention a plain attention layer, as drafters are built.
    """
    hidden = model.hidden
    vocabulary = model.head_params // hidden if specs.eagle.vocabulary == "target" else DRAFT_VOCABULARY
    width, kv_width = hidden, hidden // 4
    attention = 2 * hidden * (width + 2 * kv_width) + width * hidden
    params = FUSED_FEATURES * hidden * hidden + attention + 3 * hidden * 3 * hidden + vocabulary * hidden
    layers = specs.eagle.kv_layers
    return Draft(
        weight_bytes=params * specs.eagle.bytes_per_weight,
        kv_bytes_per_token=layers * 2 * kv_width * KV_BYTES_PER_ELEMENT,
        params=params,
        attention_macs=layers * 2 * width,
    )
