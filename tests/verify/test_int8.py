"""INT8 activations: the bound of one layer holds and is tight, and a whole model errs like random rounding."""

from __future__ import annotations

import numpy as np
import pytest

from backend.family_models import FAMILY_MODELS, make_family_model
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.text import Tokenizer
from elmoe.quant.arithmetic import linear, quantize_activations
from elmoe.quant.bitnested import Float32, dequantize, quantize
from verify import injected_noise, int8_bound, prompts

REPETITIONS = 8


def layer_error(x: Float32, weights: Float32) -> tuple[int8_bound.Float64, int8_bound.Float64]:
    """|error| and bound of one INT8 layer."""
    codes, scales = quantize(weights)
    exact = dequantize(codes, scales).astype(np.float64)
    y = linear(*quantize_activations(x), codes, scales)
    return np.abs(y - x.astype(np.float64) @ exact.T), int8_bound.bound(x, exact)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "a spike per group", "tiny", "huge", "sparse", "one group"])
def test_bound_of_a_layer_holds(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    K = 32 if kind == "one group" else 512
    x = rng.standard_normal((16, K)).astype(np.float32)
    if kind == "heavy tails":
        x **= 5
    elif kind == "a spike per group":
        x[:, ::32] *= 1000
    elif kind == "tiny":
        x *= np.float32(2.0**-98)  # about where groups become zero
    elif kind == "huge":
        x *= np.float32(1e30)
    elif kind == "sparse":
        x *= rng.random(x.shape) < 0.05
    error, limit = layer_error(x, rng.standard_normal((48, K)).astype(np.float32))
    assert (error <= limit).all()


def test_bound_of_a_layer_is_tight() -> None:
    """Inputs half-way between two codes, on the side that each weight's sign makes worse, reach 30/32 of it."""
    weights = np.random.default_rng(0).choice(np.float32([-1, 1]), size=(1, 256)).astype(np.float32)
    x = (np.float32(10.499) * np.sign(weights)).astype(np.float32)
    x[:, ::32] = 127.0
    error, limit = layer_error(x, weights)
    assert 30 / 32 < (error / limit).item() <= 1


def test_bound_holds_at_every_layer_of_tiny(tiny: Checkpoint) -> None:
    use = int8_bound.measure(tiny, prompts.of_tiny(Tokenizer.open(tiny.path))[:2])
    assert use.violations == 0
    assert 0 < use.rms < use.largest <= 1


def test_logits_err_like_random_rounding(tiny: Checkpoint) -> None:
    """The statistical bound: within the spread of INT8's own errors with random signs, and not above uniform ones."""
    study = injected_noise.study(tiny, prompts.of_tiny(Tokenizer.open(tiny.path)), REPETITIONS)
    low, high = injected_noise.band([each.typical for each in study.signs])
    assert low < study.int8.typical < high
    assert study.int8.typical < injected_noise.band([each.typical for each in study.uniform])[1]
    most_flips = max(each.flipped_decisions for each in study.uniform)
    assert study.int8.flipped_decisions <= 1.5 * most_flips


@pytest.fixture(scope="module", params=FAMILY_MODELS)
def family_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_family_model(tmp_path_factory.mktemp("family") / request.param, FAMILY_MODELS[request.param])


def random_texts(checkpoint: Checkpoint) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, checkpoint.shape.vocab, length).tolist() for length in (60, 40, 20)]


def test_bound_holds_at_every_layer_of_every_family(family_model: Checkpoint) -> None:
    """Also of latent attention's products per head, of experts with biases and of MXFP4 experts."""
    use = int8_bound.measure(family_model, random_texts(family_model))
    assert use.violations == 0
    assert 0 < use.rms < use.largest <= 1


def test_logits_of_every_family_err_like_random_rounding(family_model: Checkpoint) -> None:
    study = injected_noise.study(family_model, random_texts(family_model), REPETITIONS)
    low, high = injected_noise.band([each.typical for each in study.signs])
    assert low < study.int8.typical < high
    assert study.int8.typical < injected_noise.band([each.typical for each in study.uniform])[1]
