"""The smallest random checkpoint that is odd enough: which dimensions, and which script makes it."""

from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "random_checkpoint.py"
SMALL = {
    "hidden_size": 96,  # not a multiple of the 64 inputs of a tile
    "num_hidden_layers": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 300,  # not a multiple of the 16 rows of a tile
    "max_position_embeddings": 128,
}
