"""A GGUF reader finds the very blocks that GGUF's own quantiser makes of the source, under llama.cpp's names."""

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
from safetensors import safe_open

from elmoe.bench import gguf_q8
from elmoe.bench.gguf_q8 import cached_gguf, check_expressible, write_gguf
from elmoe.checkpoint.supported import supported_model
from elmoe.errors import ConfigError, StorageError
from elmoe.quant.tiles import unpack


def read(path):
    """(fields, tensors) of a file."""
    reader = gguf.GGUFReader(path)
    return (
        {name: field.contents() for name, field in reader.fields.items()},
        {tensor.name: tensor for tensor in reader.tensors},
    )


def source_tensors(folder):
    found = {}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "numpy") as file:
            found |= {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.fixture
def written(small, tmp_path):
    path = tmp_path / "small.gguf"
    write_gguf(small, path)
    return path


def test_every_tensor_is_the_source_quantised_by_gguf_itself(small_source, small, written):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, small.shape.layers)
    source, (_, found) = source_tensors(small_source), read(written)
    for layer in range(small.shape.layers):
        for part in ("gate", "up", "down"):
            experts = [
                source.pop(f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight")
                for e in range(small.shape.experts)
            ]
            source[f"model.layers.{layer}.mlp.experts.{part}_proj.weight"] = np.stack(experts)
    assert len(found) == len(source)
    for name, weights in source.items():
        tensor = found[names.get_name(name, try_suffixes=(".weight",))]
        assert tuple(reversed(tensor.shape.tolist())) == weights.shape
        if weights.ndim == 1 or name.endswith("mlp.gate.weight"):
            assert np.array_equal(tensor.data, weights)
        else:
            expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
            assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
            assert np.array_equal(tensor.data, expected), name


def test_codes_and_scales_of_the_built_in_model_and_its_tied_head(tiny, tmp_path):
    write_gguf(tiny, tmp_path / "tiny.gguf")
    _, found = read(tmp_path / "tiny.gguf")
    assert "output.weight" not in found
    blocks = found["token_embd.weight"].data.reshape(tiny.shape.vocab, -1, 34)
    codes, scales = unpack(*tiny.linear_planes("embedding"), tiny.shape.vocab, tiny.shape.hidden)
    assert np.array_equal(np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(codes.shape), codes)
    assert np.array_equal(np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0], scales)


def test_what_llama_cpp_reads_from_the_header(small, written):
    fields, found = read(written)
    assert fields["general.architecture"] == "qwen3moe"
    assert {
        name.removeprefix("qwen3moe."): value for name, value in fields.items() if name.startswith("qwen3moe.")
    } == {
        "context_length": 128,
        "embedding_length": 96,
        "block_count": 2,
        "feed_forward_length": 64,
        "expert_feed_forward_length": 32,
        "attention.head_count": 3,
        "attention.head_count_kv": 1,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "rope.freq_base": 1e6,
        "expert_count": 4,
        "expert_used_count": 2,
        "vocab_size": 300,
    }
    assert len(fields["tokenizer.ggml.tokens"]) == small.shape.vocab
    assert all(tensor.data_offset % 32 == 0 for tensor in found.values())


def test_large_matrices_are_written_in_pieces(small, written, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_q8, "BLOCK_WEIGHTS", 96 * 16 * 2)
    steps = []
    write_gguf(small, tmp_path / "pieces.gguf", lambda done, total: steps.append((done, total)))
    assert (tmp_path / "pieces.gguf").read_bytes()[4096:] == written.read_bytes()[4096:]
    assert len(steps) > 10 * small.shape.layers
    assert steps[-1][0] == steps[-1][1]


def test_the_cache_holds_one_file_per_checkpoint(small, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ELMOE_CACHE", str(tmp_path / "cache"))
    path = cached_gguf(small)
    assert path.parent == tmp_path / "cache"
    assert path.name.startswith("small-")
    made = path.stat().st_mtime_ns
    assert cached_gguf(small) == path
    assert path.stat().st_mtime_ns == made
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failure_leaves_nothing(small, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(small, tmp_path / "a.gguf", stop)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="cannot be written"):
        write_gguf(small, tmp_path / "nowhere" / "a.gguf")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mlp_only_layers": [1]}, "layer 1 has a dense MLP"),
        ({"norm_topk_prob": False}, "expert weights are not renormalised"),
        ({"attention_bias": True}, "attention has biases"),
        ({"model_type": "mixtral"}, "it is a mixtral"),
    ],
)
def test_what_the_peer_would_compute_differently_is_refused(small, changes, text):
    shape, program = supported_model(json.loads((small.path / "config.json").read_text()) | changes)
    with pytest.raises(ConfigError, match=f"llama.cpp's qwen3moe cannot run this model: {text}"):
        check_expressible(replace(small, shape=shape, program=program))
