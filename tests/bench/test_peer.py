"""The peer process, with a stand-in for llama.cpp: what it is asked, what it answers, and every way it can fail."""

import ast
import sys

import pytest

from elmoe.backend.reference import ReferenceBackend
from elmoe.bench.arms import BackendArm
from elmoe.bench.gguf_q8 import write_gguf
from elmoe.bench.peer import SCRIPT, Peer, PeerArm, agreement
from elmoe.bench.workload import Decoding, RacePlan
from elmoe.errors import ConfigError, ElmoeError, InternalError

PLAN = RacePlan(batches=(3,), prefill=20, steps=4, context=40)


@pytest.fixture
def gguf_file(small, tmp_path):
    path = tmp_path / "small.gguf"
    write_gguf(small, path)
    return path


def test_it_decodes_and_prefills(small, gguf_file, fake_llama_cpp):
    with Peer(fake_llama_cpp) as peer:
        assert peer.description == {"ready": "llama.cpp", "version": "0.0-fake"}
        peer.load(gguf_file, threads=2, sequences=3, cells=44)
        assert peer.description["threads"] == 2
        assert peer.description["bytes"] == gguf_file.stat().st_size
        work = PLAN.decoding(small.shape, 3, 0)
        seconds = peer.decode(work)
        assert len(seconds) == 4
        assert min(seconds) > 0
        arm = PeerArm(peer, "llama.cpp", "ar")
        assert arm.decode(work).tok_s > 0
        assert arm.decode(work).bytes_per_s is None
        assert arm.prefill(PLAN.prompt(small.shape, 0)) > 0
        assert set(peer.idle_cpu) == {"peer", "elmoe"}
        assert all(0 <= cores < 2 for cores in peer.idle_cpu.values())
    assert peer._process.returncode == 0


def test_both_sides_compute_the_same(small, gguf_file, fake_llama_cpp):
    with Peer(fake_llama_cpp) as peer:
        peer.load(gguf_file, 2, 1, 20)
        assert agreement(BackendArm(ReferenceBackend(small)), peer, PLAN.prompt(small.shape, 0)) > 0.9999


def test_other_weights_are_noticed(small, gguf_file, fake_llama_cpp, monkeypatch):
    monkeypatch.setenv("FAKE_LLAMA_FAULT", "wrong")
    with Peer(fake_llama_cpp) as peer:
        peer.load(gguf_file, 2, 1, 20)
        with pytest.raises(InternalError, match="the peer's logits are not those of the same weights"):
            agreement(BackendArm(ReferenceBackend(small)), peer, PLAN.prompt(small.shape, 0))


def test_what_goes_wrong_inside_is_told_and_the_peer_goes_on(small, gguf_file, fake_llama_cpp, tmp_path):
    with Peer(fake_llama_cpp) as peer:
        with pytest.raises(ElmoeError, match="the peer cannot go on: prefill before load"):
            peer.prefill([1])
        with pytest.raises(ElmoeError, match=r"llama.cpp cannot load .*missing.gguf"):
            peer.load(tmp_path / "missing.gguf", 2, 3, 44)
        with pytest.raises(ElmoeError, match=r"this llama\.cpp has no model option wings"):
            peer.load(gguf_file, 2, 1, 256, {"wings": 2})
        peer.load(gguf_file, 2, 1, 256, {"load_mode": 1})
        with pytest.raises(ElmoeError, match="llama_decode failed with code 1"):
            peer.decode(Decoding([[1] * 256], [[1]]))
        with pytest.raises(ElmoeError, match="unknown op 'sing'"):
            peer._ask(op="sing")
        assert peer.prefill([1, 2]) > 0


def test_a_peer_that_dies_is_quoted(small, gguf_file, fake_llama_cpp, monkeypatch):
    monkeypatch.setenv("FAKE_LLAMA_FAULT", "dies")
    with Peer(fake_llama_cpp) as peer:
        peer.load(gguf_file, 2, 3, 44)
        with pytest.raises(ElmoeError, match="stopped with exit code 3: ggml: out of luck"):
            peer.decode(PLAN.decoding(small.shape, 3, 0))
        with pytest.raises(ElmoeError, match="stopped with exit code 3"):
            peer.prefill([1])


def test_an_interpreter_that_is_not_there():
    with pytest.raises(ConfigError, match=r"/nowhere/python: cannot be run .* --peer-python takes a Python"):
        Peer("/nowhere/python")


def test_an_interpreter_that_is_none():
    with pytest.raises(ConfigError, match="/bin/cat does not answer as Python would; --peer-python takes a Python"):
        Peer("/bin/cat")


def test_an_interpreter_without_llama_cpp_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ELMOE_PEER_PYTHON", sys.executable)
    with pytest.raises(
        ConfigError,
        match=r"has no llama-cpp-python \(not here\); pip install 'elmoe\[llama-cpp\]', or .* --peer-python",
    ):
        Peer()


def test_the_script_needs_nothing_of_elmoe():
    imported = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported <= sys.stdlib_module_names | {"llama_cpp"}
