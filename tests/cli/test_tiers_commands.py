"""Models larger than their budget, as a user runs them."""

import shutil

import pytest
from cli_calls import call, document

RUN = ("run", "-p", "Tell me a story about a boat.", "--max-tokens", 16, "--batch", 2)


@pytest.mark.parametrize("policy", ["benefit", "hotness", "lru", "lfu", "none"])
def test_a_budget_changes_where_experts_are_and_not_the_text(capsys, policy):
    whole = document(capsys, RUN[0], "tiny", *RUN[1:])
    some = document(capsys, RUN[0], "tiny", *RUN[1:], "--fast-bytes", "20MB", "--cache-policy", policy)
    assert some["outputs"][0]["token_ids"] == whole["outputs"][0]["token_ids"]
    assert "tiers" not in whole["stats"]
    assert some["stats"]["tiers"]["bytes_read"] > 0
    assert some["settings"]["cache_policy"] == policy
    assert some["settings"]["fast_bytes"] == 20_000_000


def test_a_budget_that_is_too_small_says_what_would_do(capsys):
    code, out, err = call(capsys, RUN[0], "tiny", *RUN[1:], "--fast-bytes", "3MB")
    assert (code, out) == (2, "")
    assert "3,000,000 bytes of fast memory are too few: dense weights take" in err
    assert "activations" in err


def test_inspect_says_what_a_budget_holds(capsys):
    found = document(capsys, "inspect", "tiny", "--fast-bytes", "24MiB")
    assert found["fits"]
    assert 4 <= found["whole_experts_per_layer"] < found["pool_slots_per_layer"] < 32
    assert found["activation_bytes"] > 0
    assert document(capsys, "inspect", "tiny")["whole_experts_per_layer"] == 32
    code, out, _ = call(capsys, "inspect", "tiny", "--fast-bytes", "24MiB")
    assert code == 0
    assert "the others are read from disk" in " ".join(out.split())
    assert "is too small" in call(capsys, "inspect", "tiny", "--fast-bytes", "4MiB")[1]


def test_a_damaged_expert_is_named_after_the_texts_of_the_others(capsys, tmp_path, tiny):
    copy = tmp_path / "tiny.elmoe"
    shutil.copytree(tiny.path, copy)
    lsb = copy / "experts_lsb.bin"
    lsb.write_bytes(bytes(lsb.stat().st_size))
    code, _, err = call(capsys, RUN[0], copy, *RUN[1:], "--fast-bytes", "20MB")
    assert code == 2
    assert "1 of 1 prompts could not be finished" in err
    assert "experts_lsb.bin: LSB record of expert" in err
    found = call(capsys, RUN[0], copy, *RUN[1:], "--fast-bytes", "20MB", "--json")
    assert found[0] == 2
    assert '"finish_reason": "error"' in found[1]
