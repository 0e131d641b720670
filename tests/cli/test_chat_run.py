"""`elmoe run` with a model that thinks: a random one, whose chat template opens the thinking."""

import json
import shutil
from pathlib import Path

import cli_calls
import pytest
import tokenizers

from elmoe.cli import main as cli
from elmoe.cli.prompts import parse_variables
from elmoe.errors import ConfigError

RANDOM_MODEL = Path(__file__).parents[1] / "golden" / "random_moe"
TEMPLATE = "{{ messages[0].content }} {{ tools if tools }}{% if enable_thinking | default(true) %}<think>{% endif %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder whose vocabulary is words, and tags for thinking."""
    folder = tmp_path_factory.mktemp("thinker") / "thinker"
    shutil.copytree(RANDOM_MODEL, folder)
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = {f"w{number}": number for number in range(vocab - 3)} | {"?": vocab - 3}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.add_tokens(["<think>", "</think>"])
    core.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ELMOE_CACHE", str(tmp_path_factory.getbasetemp() / "thinker_cache"))


def call(capsys, model, *more):
    """(exit code, standard output, standard error) of a run of six tokens."""
    return cli_calls.call(capsys, "run", model, "-p", "w1 w2 w3", "--max-tokens", 6, "--ignore-eos", *more)


def first_output(capsys, model, *more):
    code, out, err = call(capsys, model, "--json", *more)
    assert code == 0, err
    return json.loads(out)["outputs"][0]


def test_reasoning_is_kept_apart(capsys, model):
    thinking = first_output(capsys, model)
    assert thinking["text"] == ""
    assert len(thinking["reasoning"].split()) == len(thinking["token_ids"]) == 6
    for more in (["--template-var", "enable_thinking=false"], ["--raw"]):
        plain = first_output(capsys, model, *more)
        assert plain["reasoning"] == ""
        assert len(plain["text"].split()) == 6


@pytest.mark.parametrize("more", [[], ["--template-var", "enable_thinking=false"], ["--raw"]])
def test_stop_tokens_are_in_no_text(capsys, model, tmp_path, more):
    """Not even one that is an ordinary word."""
    written = first_output(capsys, model, *more)["token_ids"]
    stop = next(token for token in written if token != written[0])
    before = written[: written.index(stop)]
    folder = tmp_path / "stopping"
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    command = ["run", str(folder), "-p", "w1 w2 w3", "--max-tokens", "6", "--json", *more]
    assert cli._exit_code(command) == 0
    stopped = json.loads(capsys.readouterr().out)["outputs"][0]
    assert (stopped["token_ids"], stopped["finish_reason"]) == ([*before, stop], "stop")
    assert stopped["text"] + stopped["reasoning"] == " ".join(f"w{token}" for token in before)


def test_people_see_the_answer_on_standard_output_and_the_reasoning_beside_it(capsys, model):
    reasoning = first_output(capsys, model)["reasoning"]
    code, out, err = call(capsys, model)
    assert (code, out) == (0, "\n")
    assert err.startswith(reasoning + "\n\n")
    assert "tok/s" in err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--template-var", "enable_thinkin=false"], "no variable 'enable_thinkin'; did you mean enable_thinking?"),
        (["--template-var", "x=1"], "no variable 'x'; it knows enable_thinking, tools"),
        (["--template-var", "enable_thinking"], "cannot read 'enable_thinking'; write for example enable_thinking=fa"),
        (["--template-var", "messages=[]"], "messages is not a variable to be set"),
        (["--template-var", "tools=x"], "tools must be a list of JSON objects"),
        (["--raw", "--template-var", "enable_thinking=1"], "template variables are for chats"),
    ],
)
def test_template_variables_that_are_of_no_use(capsys, model, more, text):
    code, out, err = call(capsys, model, *more)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert text in err


def test_a_stop_token_beyond_the_vocabulary_is_none(capsys, model, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 151645}')
    plain = ("--mode", "ar")  # what auto drafts depends on the clock
    assert first_output(capsys, folder, *plain) | {"seconds": 0, "ttft_seconds": 0} == first_output(
        capsys, model, *plain
    ) | {"seconds": 0, "ttft_seconds": 0}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% if %}", "chat_template.jinja: the chat template is broken (line 1: "),
        ("{% break %}", "chat_template.jinja: the chat template is broken ('break' outside loop"),
        ("{{ 'x' * 10**18 }}", "chat_template.jinja: the chat template asks for more memory than there is; use raw"),
    ],
)
def test_a_broken_template_hinders_chats_alone(capsys, model, tmp_path, template, text):
    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(template)
    for more in ([], ["--chat"]):
        code, out, err = call(capsys, folder, *more)
        assert (code, out) == (2, "")
        assert text in err.splitlines()[-1]
        assert "Traceback" not in err
    assert first_output(capsys, folder, "--raw")["text"] == first_output(capsys, model, "--raw")["text"]


def test_a_tokenizer_with_more_tokens_than_the_model(capsys, model, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(model, folder)
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.add_tokens(["more"])
    core.save(str(folder / "tokenizer.json"))
    code, _, err = call(capsys, folder)
    assert code == 2
    assert "the tokenizer has 97 tokens, the model 96; tokenizer.json belongs to another model" in err


def test_values_are_json_or_texts():
    given = ["a=false", "b=high", 'c=[{"x": 1}]', "d=", "e=1=2", 'f="1"']
    assert parse_variables(given) == {"a": False, "b": "high", "c": [{"x": 1}], "d": "", "e": "1=2", "f": "1"}
    assert parse_variables([]) == {}
    for wrong in ("a", "=1", "a b=1"):
        with pytest.raises(ConfigError, match="--template-var: cannot read"):
            parse_variables([wrong])
