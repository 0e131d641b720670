from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from gguf_models import MODELS, random_tensors, write_gguf
from synthetic import Source

import elmoe.checkpoint.resolve as resolve_module
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.gguf_header import read_header
from elmoe.checkpoint.resolve import BUILT_IN, cache_folder, read_config, resolve, why_not_convertible
from elmoe.errors import CheckpointError, StorageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ELMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Destinations of the conversions that a test causes."""
    done: list[Path] = []

    def counted(source: Path, destination: Path, progress: object = None) -> object:
        done.append(destination)
        return convert(source, destination)

    monkeypatch.setattr(resolve_module, "convert", counted)
    return done


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_models_are_whole_and_say_where_they_come_from(name: str) -> None:
    folder = resolve(name)
    checkpoint = Checkpoint.open(folder)
    checkpoint.verify()
    assert checkpoint.manifest["source"]["name"] == name
    card = re.sub(r"<!-- /[\w-]+ -->", "", (folder / "MODEL_CARD.md").read_text())  # ends of generated tables
    assert "CC BY-SA 4.0" in card
    assert not re.search(r"(^|[\s`(])/\w", card)  # no paths of the machine that made it


def test_a_built_in_name_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert resolve("tiny").name == "tiny.elmoe"
    with pytest.raises(CheckpointError, match=r"'\./tiny' holds no model"):
        resolve("./tiny")


def test_an_elmoe_folder_is_itself(converted: Path, conversions: list[Path]) -> None:
    assert resolve(str(converted)) == converted
    assert conversions == []


def test_a_hugging_face_folder_is_converted_once(source: Source, cache: Path, conversions: list[Path]) -> None:
    first = resolve(str(source.path))
    assert first.parent == cache
    assert first.name.startswith("source-")
    Checkpoint.open(first).verify()
    assert resolve(str(source.path)) == first
    assert resolve(f"{source.path}/../source/") == first
    assert conversions == [first]


def test_a_changed_source_is_converted_again(source: Source, conversions: list[Path]) -> None:
    first = resolve(str(source.path))
    weights = source.path / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    second = resolve(str(source.path))
    (source.path / "generation_config.json").write_text("{}")
    third = resolve(str(source.path))
    (source.path / "additional_chat_templates").mkdir()
    (source.path / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    fourth = resolve(str(source.path))
    assert conversions == [first, second, third, fourth]
    assert len({first, second, third, fourth}) == 4


def test_files_that_a_conversion_does_not_read_change_nothing(
    source: Source, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(str(source.path))
    for name in ("README.md", "logits.npy", "consolidated.pth"):
        (source.path / name).write_text("x")
    (source.path / "original").mkdir()
    (source.path / "original" / "params.json").write_text("{}")
    assert resolve(str(source.path)) == first
    monkeypatch.chdir(source.path)
    assert resolve(".") == first
    assert conversions == [first]


def test_another_process_may_convert_the_same_model_meanwhile(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(folder: Path, destination: Path, progress: object = None) -> None:
        convert(folder, destination)
        convert(folder, destination)  # finds the destination of the other one

    monkeypatch.setattr(resolve_module, "convert", overtaken)
    Checkpoint.open(resolve(str(source.path))).verify()


def test_progress_is_passed_on(source: Source) -> None:
    seen: list[int] = []
    resolve(str(source.path), lambda done, total: seen.append(done))
    assert seen
    seen.clear()
    resolve(str(source.path), lambda done, total: seen.append(done))
    assert seen == []


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("ELMOE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "elmoe"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "elmoe"


def test_a_cache_that_cannot_be_created(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ELMOE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"cache cannot be created \(Not a directory\); set ELMOE_CACHE to a folder"):
        resolve(str(source.path))


@pytest.mark.parametrize("model", ["", "Qwen/Qwen3-30B-A3B", "tinny"])
def test_unknown_models(model: str) -> None:
    message = rf"there is no model '{model}'; MODEL is an \.elmoe folder, a Hugging Face folder .* built-in name: tiny"
    for function in (resolve, read_config):
        with pytest.raises(CheckpointError, match=message):
            function(model)


def test_things_without_weights(source: Source, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json' holds no model; MODEL is"):
        resolve(str(source.path / "config.json"))
    with pytest.raises(CheckpointError, match=r"config\.json is missing; MODEL is an \.elmoe folder"):
        read_config(str(tmp_path))


def test_a_gguf_file_is_converted_once(tmp_path: Path, cache: Path, conversions: list[Path]) -> None:
    (tmp_path / "models").mkdir()
    values = MODELS["qwen3_moe"]
    path = write_gguf(tmp_path / "models" / "small.gguf", values, random_tensors(values))
    first = resolve(str(path))
    assert first.parent == cache
    assert first.name.startswith("small-")
    Checkpoint.open(first).verify()
    assert resolve(str(path)) == resolve(str(tmp_path / "models")) == first
    (tmp_path / "models" / "notes.txt").write_text("not of the model")
    assert resolve(str(path)) == first
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    second = resolve(str(path))
    assert conversions == [first, second]


def test_any_of_several_gguf_files_is_the_same_model(tmp_path: Path, conversions: list[Path]) -> None:
    (tmp_path / "models").mkdir()
    values = MODELS["qwen3_moe"]
    write_gguf(tmp_path / "models" / "small.gguf", values, random_tensors(values), split=16)
    parts = sorted((tmp_path / "models").iterdir())
    found = {resolve(str(path)) for path in (*parts, tmp_path / "models")}
    assert len(found) == len(conversions) == 1
    os.utime(parts[1], ns=(0, parts[1].stat().st_mtime_ns + 1))
    assert resolve(str(parts[0])) not in found


def test_config_of_a_gguf_file_needs_its_header_alone(tmp_path: Path, conversions: list[Path]) -> None:
    values = MODELS["glm4_moe_lite"]
    path = write_gguf(tmp_path / "small.gguf", values, random_tensors(values))
    start = min(info.offset for info in read_header(path).tensors.values())
    path.write_bytes(path.read_bytes()[:start])
    for model in (path, tmp_path):
        assert read_config(str(model))["model_type"] == "glm4_moe_lite"
    with pytest.raises(CheckpointError, match=r"small\.gguf is truncated"):
        resolve(str(path))
    assert not any(path.exists() for path in conversions)


def test_broken_and_missing_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGML")
    for function in (resolve, read_config):
        with pytest.raises(CheckpointError, match=r"bad\.gguf is not a GGUF file"):
            function(str(tmp_path / "bad.gguf"))
        with pytest.raises(CheckpointError, match=r"there is no model '.*none\.gguf'; MODEL is .* a \.gguf file"):
            function(str(tmp_path / "none.gguf"))


@pytest.mark.parametrize(
    "name", ["SMALL.GGUF", "sha256-2bada8a7450677000f678be90653b85d364de7db25eb5ea54136ada5f3933730", "x.bin"]
)
def test_a_gguf_file_of_any_name(name: str, tmp_path: Path) -> None:
    values = MODELS["qwen3_moe"]
    path = write_gguf(tmp_path / "small.gguf", values, random_tensors(values)).rename(tmp_path / name)
    assert read_config(str(path))["model_type"] == "qwen3_moe"
    made = resolve(str(path))
    assert made.name.startswith(name.removesuffix(".GGUF") + "-")
    Checkpoint.open(made).verify()


def test_parts_with_a_large_ending(tmp_path: Path) -> None:
    values = MODELS["qwen3_moe"]
    (tmp_path / "models").mkdir()
    write_gguf(tmp_path / "models" / "small.gguf", values, random_tensors(values), split=16)
    parts = [path.rename(path.with_suffix(".GGUF")) for path in sorted((tmp_path / "models").iterdir())]
    assert resolve(str(parts[1])) == resolve(str(tmp_path / "models"))


def test_a_file_of_no_kind(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in (b"not a model", b""):
        path.write_bytes(content)
        for function in (resolve, read_config):
            with pytest.raises(
                CheckpointError, match=r"notes\.txt' is no GGUF file \(it does not start with GGUF\); MODEL"
            ):
                function(str(path))


def test_whether_a_gguf_file_can_be_converted(source: Source, converted: Path, tmp_path: Path) -> None:
    values = MODELS["qwen3_moe"]
    tensors = random_tensors(values)
    whole = write_gguf(tmp_path / "whole.gguf", values, tensors)
    assert why_not_convertible(str(whole)) == (True, None)
    name = "model.layers.1.self_attn.o_proj.weight"
    part = write_gguf(tmp_path / "part.gguf", values, {key: tensors[key] for key in tensors if key != name})
    found, reason = why_not_convertible(str(part))
    assert found is False
    assert reason is not None
    assert "tensor blk.1.attn_output.weight" in reason
    whole.write_bytes(whole.read_bytes()[:-1000])
    found, reason = why_not_convertible(str(whole))
    assert (found, "whole.gguf is truncated" in str(reason)) == (False, True)
    for model in (source.path, source.path / "config.json", converted, "tiny"):
        assert why_not_convertible(str(model)) == (None, None)


def test_read_config(source: Source, converted: Path, conversions: list[Path], tmp_path: Path) -> None:
    for model in (source.path, source.path / "config.json", converted):
        assert read_config(str(model)) == source.config
    assert read_config("tiny")["num_experts"] == 32
    other = tmp_path / "my-model.json"
    other.write_text(json.dumps({"a": 1}))
    assert read_config(str(other)) == {"a": 1}
    other.write_text("{")
    with pytest.raises(CheckpointError, match=r"my-model\.json is not valid JSON .*; give a config\.json of a model"):
        read_config(str(other))
    assert conversions == []
