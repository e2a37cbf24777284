"""What a training step has to compute, and what a known card could, in FLOP/s."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig

from learner.batch import TrainingBatch

# Dense, on tensor cores, by the makers' data sheets.
_BFLOAT16_PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12}


def peak_flops(dtype: str) -> float | None:
    """Of the GPU there is; None on a CPU, and for a card or dtype that is not in the table."""
    if not torch.cuda.is_available() or dtype != "bfloat16":
        return None
    card = torch.cuda.get_device_name()
    return next((peak for name, peak in _BFLOAT16_PEAKS.items() if name in card), None)


def model_flops(folder: Path, parameters: int, batch: TrainingBatch) -> float:
    """Of one forward and backward pass over the batch, by the model alone: nothing that is computed twice.

    6 for each weight that a token meets: those of the layers for every token, the head's for those of responses; and
    causal attention's products.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    head = config.vocab_size * config.hidden_size
    layers = parameters - head * (1 if config.tie_word_embeddings else 2)
    lengths = (batch.prompt_lengths + batch.response_lengths).double()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * head_size * float(lengths.square().sum())
    return 6 * layers * float(lengths.sum()) + 6 * head * int(batch.response_lengths.sum()) + attention
