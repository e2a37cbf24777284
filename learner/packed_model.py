"""A Hugging Face causal language model that reads packed sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from learner.attention import PACKED_ATTENTION, PackedLayout
from learner.logprobs import token_logprobs
from learner.packing import MicroBatch
from learner.shared_rows import take_rows
from shared.errors import ModelFolderError
from shared.model_folder import check_weights
from shared.pretrained import generation_config, model_config, reason


class PackedCausalLM(torch.nn.Module):
    """A causal language model that reads packed sequences and gives log-probabilities, never full logits."""

    def __init__(self, causal_lm: Any, chunk_bytes: int) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.chunk_bytes = chunk_bytes

    def checkpoint_activations(self) -> None:
        """From now on keep each layer's input alone for the backward pass, which computes the rest again."""
        # Nothing in the model is random, so there is no random state to restore.
        self.causal_lm.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        for module in self.causal_lm.modules():
            if isinstance(module, GradientCheckpointingLayer):
                # Only while training; what is inside the layer need not know, or it would drop out.
                module.training = True

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return self.causal_lm.get_input_embeddings().num_embeddings

    def forward(
        self,
        words: Tensor,
        word_index: Tensor,
        position_ids: Tensor,
        layout: PackedLayout,
        predicting: Tensor,
        targets: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the targets and entropies, both float32 [P]; arguments as in MicroBatch."""
        # Each word is looked up once: PyTorch would add up the gradients of all its places in the weight's dtype.
        embedded = take_rows(self.causal_lm.get_input_embeddings()(words), word_index)
        hidden = self.causal_lm.get_decoder()(
            inputs_embeds=embedded, position_ids=position_ids, use_cache=False, packed_layout=layout
        ).last_hidden_state[0]
        head = self.causal_lm.get_output_embeddings().weight
        predictors = take_rows(hidden, predicting)
        return token_logprobs(predictors, head, targets, temperature=temperature, chunk_bytes=self.chunk_bytes)


def packed_logprobs(model: Any, micro_batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of a micro-batch's predictions, float32 [P] each.

    model: a PackedCausalLM, or what wraps it with the same forward
    """
    return model(
        micro_batch.words,
        micro_batch.word_index,
        micro_batch.position_ids,
        micro_batch.layout,
        micro_batch.predicting,
        micro_batch.targets,
        temperature=temperature,
    )


def load_model(folder: Path, dtype: str) -> Any:
    """The causal language model in a folder: safetensors only, nothing fetched, none of the folder's code run.

    Raises ModelFolderError when the folder is missing, incomplete, or not such a model.
    """
    check_weights(folder)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=model_config(folder),
            generation_config=generation_config(folder),
            dtype=getattr(torch, dtype),
            attn_implementation=PACKED_ATTENTION,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told of below, by name
        )
    except ModelFolderError:
        raise
    except Exception as error:  # the library documents no closed list of what a broken folder raises
        raise ModelFolderError(f"cannot load the model in {folder}: {reason(error)}") from error
    # Both were compared with what config.json describes, but not with what transformers makes of it.
    if others := sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}):
        raise ModelFolderError(
            f"the learner's model is not of the weights in {folder}: it has {len(others)} that are not there, or of "
            f"another shape, among them {others[0]}"
        )
    return model
