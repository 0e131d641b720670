"""Stands in for llama-cpp-python's low-level API: keeps sequences as llama.cpp would, computes with elmoe.

$FAKE_LLAMA_MODEL is the `.elmoe` folder whose logits it gives; $FAKE_LLAMA_FAULT is `dies` (in the first decode) or
`wrong` (logits of other weights).
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

__version__ = "0.0-fake"

FAULT = os.environ.get("FAKE_LLAMA_FAULT")


class Context:
    def __init__(self, parameters):
        self.parameters = parameters
        self.sequences = {}


def llama_backend_init():
    print("chatter on standard output")


def llama_model_default_params():
    return SimpleNamespace(n_gpu_layers=-1, load_mode=-1)


def llama_context_default_params():
    return SimpleNamespace(n_ctx=512, n_batch=64, n_seq_max=1, n_threads=4, n_threads_batch=4)


def llama_model_load_from_file(path, parameters):
    assert parameters.n_gpu_layers == 0
    file = Path(path.decode())
    return file if file.is_file() and file.read_bytes()[:4] == b"GGUF" else None


def llama_init_from_model(model, parameters):
    return Context(parameters)


def llama_get_memory(context):
    return context


def llama_memory_clear(context, data):
    context.sequences.clear()


def llama_batch_init(capacity, embedding, sequences):
    return SimpleNamespace(
        n_tokens=0,
        token=[0] * capacity,
        pos=[0] * capacity,
        n_seq_id=[0] * capacity,
        seq_id=[[0] for _ in range(capacity)],
        logits=[0] * capacity,
    )


def llama_decode(context, batch):
    if FAULT == "dies":
        print("ggml: out of luck", file=sys.stderr, flush=True)
        os._exit(3)
    parameters = context.parameters
    assert batch.n_tokens <= parameters.n_batch
    for i in range(batch.n_tokens):
        sequence = batch.seq_id[i][0]
        assert batch.n_seq_id[i] == 1
        assert 0 <= sequence < parameters.n_seq_max
        held = context.sequences.setdefault(sequence, [])
        assert batch.pos[i] == len(held), "positions follow each other"
        held.append(batch.token[i])
        if len(held) > parameters.n_ctx // parameters.n_seq_max:
            return 1
    return 0


def llama_synchronize(context):
    pass


def llama_get_logits_ith(context, index):
    from elmoe.backend.reference import ReferenceBackend
    from elmoe.checkpoint.folder import Checkpoint
    from elmoe.engine.elasticity import Teacher

    assert index == -1
    teacher = Teacher(ReferenceBackend(Checkpoint.open(Path(os.environ["FAKE_LLAMA_MODEL"]))), context.sequences[0])
    logits = teacher.logits[-1].tolist()
    return logits[::-1] if FAULT == "wrong" else logits


def llama_model_get_vocab(model):
    return model


def llama_vocab_n_tokens(vocab):
    return 10**9  # the list of logits ends by itself


def llama_n_threads(context):
    return context.parameters.n_threads


def llama_model_size(model):
    return model.stat().st_size


def llama_print_system_info():
    return b"CPU : FAKE = 1"
