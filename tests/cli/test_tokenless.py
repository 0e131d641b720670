"""Models without tokenizer.json, as a bare model's `save_pretrained` writes them: token ids in, token ids out."""

import json

import pytest
from cli_calls import call, document
from safetensors.numpy import save_file

from backend.family_models import FAMILY_MODELS, random_tensors
from elmoe.trace.parquet import read_trace


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With the stop token of transformers' OlmoeConfig, which is beyond so small a vocabulary."""
    folder = tmp_path_factory.mktemp("bare") / "bare"
    folder.mkdir()
    config = FAMILY_MODELS["olmoe"] | {"eos_token_id": 50279}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(config, 0), folder / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ELMOE_CACHE", str(tmp_path_factory.getbasetemp() / "bare_cache"))


def test_modes_write_the_same_tokens(capsys, model, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"token_ids": [7, 8, 9, 10]}\n')
    base = ["run", model, "--tokens", "1,2,3", "--tokens", "98", "--prompts", prompts, "--max-tokens", 12]
    plain = document(capsys, *base, "--mode", "ar")
    elastic = document(capsys, *base, "--mode", "sd", "--width", 2, "--depth", 3)
    ids = [output["token_ids"] for output in plain["outputs"]]
    assert [output["token_ids"] for output in elastic["outputs"]] == ids
    assert [len(each) for each in ids] == [12, 12, 12]
    assert [output["prompt_tokens"] for output in plain["outputs"]] == [3, 1, 4]
    assert {(output["text"], output["reasoning"]) for output in plain["outputs"]} == {("", "")}
    assert plain["stats"]["verify_steps"] == 0 < elastic["stats"]["verify_steps"]


def test_people_see_token_ids(capsys, model):
    base = ["run", model, "--tokens", "1,2,3", "--max-tokens", 4]
    ids = document(capsys, *base)["outputs"][0]["token_ids"]
    line = ",".join(map(str, ids))
    assert call(capsys, *base)[1] == f"{line}\n"
    code, out, _ = call(capsys, *base, "--tokens", line)
    assert (code, out.splitlines()[:3]) == (0, ["> 1,2,3", line, f"> {line}"])


def test_trace_and_elasticity(capsys, model, tmp_path):
    document(capsys, "trace", model, "--tokens", "1,2,3", "-o", tmp_path / "t.parquet", "--max-tokens", 6)
    assert read_trace(tmp_path / "t.parquet").steps
    found = document(capsys, "elasticity", model, "--tokens", "1,2,3", "--tokens", "4", "--max-tokens", 4)
    assert found["prompts"] == 2


@pytest.mark.parametrize("verb", ["run", "trace", "elasticity"])
def test_a_text_is_refused_with_the_remedy(capsys, model, tmp_path, verb):
    more = ["-o", tmp_path / "t.parquet"] if verb == "trace" else []
    code, out, err = call(capsys, verb, model, "-p", "Hello", *more)
    assert (code, out) == (2, "")
    assert "a text needs a tokenizer: this model has no tokenizer.json; put the model's own into the source" in err
    assert "or give and take token ids (on the command line --tokens 1,2,3)" in err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--tokens", "1,99"], "token 99 is not in the vocabulary of 99"),
        (["--tokens", "1,x"], "--tokens: cannot read '1,x'"),
        (["--tokens", "1", "--chat"], "--chat is for texts; token ids go to the model as they are"),
        (["--tokens", "1", "--template-var", "x=1"], "template variables are for chats"),
        ([], "no prompt given; use -p TEXT or --tokens 1,2,3 (repeatable), or --prompts FILE.jsonl"),
    ],
)
def test_refusals(capsys, model, more, text):
    code, out, err = call(capsys, "run", model, *more)
    assert (code, out) == (2, "")
    assert text in err


def test_texts_and_token_ids_beside_each_other(capsys):
    found = document(capsys, "run", "tiny", "-p", "Hi! How are you today?", "--tokens", "5,6,7", "--max-tokens", 20)
    chat, raw = found["outputs"]
    assert chat["text"] == "I'm doing well, thank you! How are you?"
    assert raw["prompt_tokens"] == 3
    assert raw["text"]
