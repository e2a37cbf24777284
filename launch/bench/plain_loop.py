"""What people would use instead: `transformers.generate` and a plain PyTorch update, in turn, in one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from launch.bench.models import compute_device
from launch.bench.rounds import seconds

_MICRO_BATCHES = (8, 16, 32, 64, 128)
_PAD = 0
# A size that takes so much longer for a row than the best one is the last to be tried.
_CLEARLY_SLOWER = 1.1
_BRIEF_S = 2.0
_ENOUGH_S = 30.0


class PlainLoop:
    """A Hugging Face model, sampled by its own `generate` with a cache, and AdamW in the model's dtype.

    The update is REINFORCE with a group baseline, on-policy: one forward and backward pass over padded micro-batches
    with full logits, log-probabilities and entropy of the responses. Nothing is recomputed and nothing kept in float32
    besides, so it does less than the learner does. `tune` chooses the micro-batch that is fastest here.

    prompts: token ids; of each, `completions` samples of exactly `response_tokens` tokens are taken
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str,
        prompts: Sequence[Sequence[int]],
        completions: int,
        response_tokens: int,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self._completions, self._response_tokens = completions, response_tokens
        self._device = torch.device(compute_device())
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False
        ).to(self._device)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-6, weight_decay=0.01, fused=True)
        width = max(map(len, prompts))
        prompt_ids = [[_PAD] * (width - len(ids)) + list(ids) for ids in prompts]
        self._prompts = torch.tensor(prompt_ids, device=self._device)
        self._mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=self._device)
        self._micro_batch = 0

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """What is trained."""
        parameters: Iterator[torch.nn.Parameter] = self._model.parameters()
        return parameters

    def generate(self) -> torch.Tensor:
        """Every completion behind its prompt, int64 [prompts · completions, width]; no row ends early."""
        with torch.inference_mode():
            output: torch.Tensor = self._model.generate(
                self._prompts,
                attention_mask=self._mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=self._completions,
                min_new_tokens=self._response_tokens,
                max_new_tokens=self._response_tokens,
                pad_token_id=_PAD,
            )
        return output.clone()

    def update(self, tokens: torch.Tensor) -> float:
        """One optimizer step on the completions; the loss."""
        if not self._micro_batch:
            raise RuntimeError("call `tune` first")
        return self._update(tokens, self._micro_batch)

    def tune(self) -> None:
        """Find the fastest micro-batch: by one of each size, smallest first, until they get slower."""
        tokens = self.generate()
        sizes = [size for size in _MICRO_BATCHES if size < len(tokens)] + [len(tokens)]
        self._accumulate_gradients(tokens[: sizes[0]], sizes[0])  # the first pass is slow

        def duration(size: int) -> float:
            return seconds(lambda: self._accumulate_gradients(tokens[:size], size)) / size

        self._micro_batch = fastest(sizes, duration)
        self._optimizer.zero_grad(set_to_none=True)

    def _update(self, tokens: torch.Tensor, micro_batch: int) -> float:
        total = self._accumulate_gradients(tokens, micro_batch)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return total

    def _accumulate_gradients(self, tokens: torch.Tensor, micro_batch: int) -> float:
        """Forward and backward over the completions, so many at a time; the loss."""
        mask = self._mask.repeat_interleave(self._completions, 0)
        mask = torch.nn.functional.pad(mask, (0, self._response_tokens), value=1)
        rewards = torch.rand(len(self._prompts), self._completions, device=self._device)
        advantages = (rewards - rewards.mean(1, keepdim=True)).flatten()
        total = 0.0
        for start in range(0, len(tokens), micro_batch):
            rows = slice(start, min(start + micro_batch, len(tokens)))
            logits = self._model(input_ids=tokens[rows], attention_mask=mask[rows], use_cache=False).logits
            log_p = torch.log_softmax(logits[:, -self._response_tokens - 1 : -1].float(), dim=-1)
            chosen = log_p.gather(2, tokens[rows, -self._response_tokens :, None])[..., 0]
            entropy = -(log_p.exp() * log_p).sum(-1)
            gain = chosen * advantages[rows, None] + 0.001 * entropy
            loss = -gain.sum() / (len(tokens) * self._response_tokens)
            loss.backward()
            total += float(loss.detach())
        return total


def fastest(sizes: Sequence[int], duration: Callable[[int], float]) -> int:
    """The micro-batch that takes least for a row.

    sizes: ascending; duration: tries a size once, seconds for a row. A brief try is made twice. Those larger than one
    that is clearly slower than the best before it are not tried, and none once the tries have taken long: where few
    rows are so much work, more at once are no faster.
    """
    best, least, spent = sizes[0], math.inf, 0.0
    for size in sizes:
        tries = [duration(size)]
        if tries[0] * size < _BRIEF_S:
            tries.append(duration(size))
        if min(tries) < least:
            best, least = size, min(tries)
        spent += sum(tries) * size
        if min(tries) > _CLEARLY_SLOWER * least or spent > _ENOUGH_S:
            break
    return best
