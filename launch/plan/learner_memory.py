"""What DeepSpeed keeps for a model, in bytes, on the device of a rank and in its host's memory.

As DeepSpeed 0.19.8 allocates it, with learner/policy.py's settings: tests/launch/plan/test_learner_memory.py adds up
its tensors. P parameters, padded; p of them a rank's own; AdamW has two float32 moments of each.
"""

from __future__ import annotations

from dataclasses import dataclass

from learner.memory_bounds import BUCKET_ELEMENTS
from shared.model_sizes import ModelSizes

FLOAT32 = 4
FLOAT64 = 8


@dataclass(frozen=True, kw_only=True)
class LearnerStates:
    """gradients: added up over a step's micro-batches; on_the_way: buckets, and the largest gradient until it is in
    one; embedding_gradient: the same of a tied embedding, when activations are gone; stepping: what the optimizer step
    takes on top, then; host: of all that, in the host's memory"""

    weights: int
    master: int
    moments: int
    gradients: int
    on_the_way: int
    embedding_gradient: int
    stepping: int
    host: int = 0

    @property
    def resident(self) -> int:
        return self.weights + self.master + self.moments + self.gradients


def learner_states(model: ModelSizes, *, item: int, zero_stage: int, ranks: int, offload: bool) -> LearnerStates:
    """item: bytes of the model's dtype."""
    half = item < FLOAT32
    P = model.parameters + (-model.parameters) % (2 * ranks)
    p = P // ranks
    master = 0 if zero_stage == 0 else FLOAT32 * p
    moments = 2 * FLOAT32 * (P if zero_stage == 0 else p)
    gradients, stepping = _gradients(model, P, p, half, zero_stage, offload)
    matrix = model.hidden * model.intermediate if model.tied else model.largest_parameter
    on_the_way = _gradient(matrix, item) + _bucket(item, half, zero_stage, offload)
    embedding = _gradient(model.embedding, item) if model.tied else 0
    weights = item * (p if zero_stage == 3 else P)
    if not offload:
        return LearnerStates(
            weights=weights,
            master=master,
            moments=moments,
            gradients=gradients,
            on_the_way=on_the_way,
            embedding_gradient=embedding,
            stepping=stepping,
        )
    # The host has a float32 copy of the gradients, too, and one of the weights in the model's dtype. All is pinned but
    # the moments.
    one = item * model.largest_parameter
    pinned = [master, FLOAT32 * p, item * p, one]
    return LearnerStates(
        weights=weights,
        master=0,
        moments=0,
        gradients=gradients,
        on_the_way=on_the_way + one,
        embedding_gradient=embedding,
        stepping=stepping,
        host=moments + sum(map(pinned_bytes, pinned)),
    )


def pinned_bytes(size: int) -> int:
    """What PyTorch takes of the host's memory for a pinned tensor: the next power of two."""
    return 1 << (size - 1).bit_length()


def _gradients(model: ModelSizes, P: int, p: int, half: bool, zero_stage: int, offload: bool) -> tuple[int, int]:
    """Kept until the step; and what the step takes: a flat copy, or the norm of the largest in float64."""
    norm = FLOAT64 * model.largest_parameter
    if not half:
        return FLOAT32 * model.parameters, 0 if zero_stage == 0 else max(FLOAT32 * p, norm)
    if zero_stage == 1:
        # Whole on every rank, in float32; and in the model's dtype, or, for the host, once more as the rank's part.
        if offload:
            return FLOAT32 * (model.parameters + p), norm
        return FLOAT32 * P + 2 * model.parameters, 0
    return FLOAT32 * p, FLOAT32 * p if zero_stage == 3 else norm


def _bucket(item: int, half: bool, zero_stage: int, offload: bool) -> int:
    if zero_stage == 0 or (half and zero_stage == 1 and not offload):
        return 0
    return BUCKET_ELEMENTS * (FLOAT32 if zero_stage == 1 else item)


def _gradient(parameters: int, item: int) -> int:
    """One parameter's gradient: as it comes, as float32, and, where it is larger than a bucket, copied."""
    return parameters * (item + FLOAT32 + (item if parameters > BUCKET_ELEMENTS else 0))
