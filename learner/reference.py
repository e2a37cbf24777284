"""The reference model: what the KL term holds the policy near."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from learner.packed_model import PackedCausalLM, load_model, packed_logprobs
from learner.packing import MicroBatch
from shared.errors import ModelFolderError


class ReferenceModel:
    """Frozen weights that score the policy's tokens; every rank has its own copy.

    Raises ModelFolderError when the folder is no model, or one with another vocabulary than the policy's.
    """

    def __init__(
        self, folder: Path, *, policy: PackedCausalLM, policy_folder: Path, dtype: str, device: torch.device
    ) -> None:
        model = PackedCausalLM(load_model(folder, dtype), policy.chunk_bytes)
        if model.vocabulary != policy.vocabulary:
            raise ModelFolderError(
                f"the reference model in {folder} has {model.vocabulary} token ids, the policy {policy.vocabulary}: "
                "point learner.reference_model to a model with the policy's vocabulary"
            )
        _check_same_tokens(folder, policy_folder)
        self._model = model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def logprobs(self, micro_batch: MicroBatch, temperature: float) -> Tensor:
        """Of the micro-batch's targets, nats: float32 [P]."""
        return packed_logprobs(self._model, micro_batch, temperature)[0]


def _check_same_tokens(folder: Path, policy_folder: Path) -> None:
    """Where both folders hold a tokenizer, every token must have the same id in both."""
    files = [path / "tokenizer.json" for path in (folder, policy_folder)]
    if folder == policy_folder or not all(file.is_file() for file in files):
        return
    reference, policy = map(_token_ids, files)
    if different := sorted({token for token, _ in reference.items() ^ policy.items()}):
        raise ModelFolderError(
            f"the reference model in {folder} has another vocabulary than the policy: {len(different)} tokens have no "
            f"common id, among them {different[0]!r}. Point learner.reference_model to a model with the policy's"
        )


def _token_ids(file: Path) -> dict[str, int]:
    try:
        return Tokenizer.from_file(str(file)).get_vocab()
    except Exception as error:  # the library raises nothing more particular
        raise ModelFolderError(f"cannot read the tokenizer {file}: {error}") from error
