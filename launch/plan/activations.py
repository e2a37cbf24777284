"""What a forward and a backward pass of the learner hold at once, in bytes.

Counted from what autograd saves in `transformers`' decoder layers (Qwen2, Qwen3, Llama, Mistral) and in
learner/logprobs.py; tests/launch/plan/test_activations.py holds it against torch's allocator. T tokens of one
micro-batch, all of which may be predictions; b bytes to a number.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.model_sizes import ModelSizes

FLOAT32 = 4
# FlashAttention 2 takes a head's width in multiples of this.
_FLASH_WIDTH = 32


@dataclass(frozen=True, kw_only=True)
class PassMemory:
    """Bytes at the pass's fullest moment.

    saved: what the layers keep for the backward pass; working: what is computed on top of it then; logits: the part
    of `working` that learner.logit_chunk_mib bounds; head_gradient: of the output head, from the first moment of the
    backward pass on
    """

    saved: int
    working: int
    logits: int
    head_gradient: int

    @property
    def total(self) -> int:
        return self.saved + self.working + self.head_gradient


def pass_memory(
    model: ModelSizes,
    *,
    tokens: int,
    keys: int,
    item: int,
    checkpointing: bool,
    chunk_bytes: int,
    attention_copies: int = 1,
) -> PassMemory:
    """The fullest of three moments: at the output head, or in the last layer's backward pass, of its feed-forward part
    or of FlashAttention.

    keys: that attention is given, of all stretches together; as many as tokens where these have nothing in common
    chunk_bytes: learner.logit_chunk_mib; attention_copies: tensors that hold the attention's output: 1 under
    variable-length attention, 2 where runs of sequences are put together again
    """
    T, D = tokens, model.hidden
    layer = layer_activations(model, tokens=T, keys=keys, item=item, attention_copies=attention_copies)
    rope = 2 * T * model.head_width * item
    kept = model.layers * (T * D * item if checkpointing else layer) + rope
    # The final norm's, the hidden states that predict, and three float32 numbers of each prediction.
    at_head = kept + _norm(T, D, item) + T * D * item + 3 * T * FLOAT32
    logits = logit_memory(model, tokens=T, item=item, chunk_bytes=chunk_bytes)
    norm_backward = T * D * (4 * FLOAT32 if item < FLOAT32 else 6 * item)
    head_working = max(logits + T * D * (FLOAT32 + item), norm_backward)

    # With checkpoints the layer is computed again first. Of its feed-forward part two gradients are alive together.
    in_layer = kept + (layer if checkpointing else 0)
    layer_working = T * item * (D + 2 * model.intermediate)
    # By then what the feed-forward part had saved is gone.
    at_attention = in_layer - _feed_forward(model, T, item)
    attention_working = T * D * item + _flash_backward(model, T, keys, item) if attention_copies == 1 else 0

    head_gradient = model.embedding * item
    moments = [
        PassMemory(saved=at_head, working=head_working, logits=logits, head_gradient=head_gradient),
        PassMemory(saved=in_layer, working=layer_working, logits=0, head_gradient=head_gradient),
        PassMemory(saved=at_attention, working=attention_working, logits=0, head_gradient=head_gradient),
    ]
    return max(moments, key=lambda moment: moment.total)


def layer_activations(model: ModelSizes, *, tokens: int, keys: int, item: int, attention_copies: int) -> int:
    """What one layer saves: two norms and what they give, queries, keys, values, the attention's output and
    log-sum-exp, and four tensors of the gated feed-forward."""
    T = tokens
    norms = _norm(T, model.hidden, item) + T * model.hidden * item
    if model.head_norms:
        norms += _norm(T, model.query_width, item) + _norm(T, model.kv_width, item)
    attention = T * item * (1 + attention_copies) * model.query_width + keys * item * 2 * model.kv_width
    attention += T * model.heads * FLOAT32
    return norms + attention + _feed_forward(model, T, item)


def logit_memory(model: ModelSizes, *, tokens: int, item: int, chunk_bytes: int) -> int:
    """Chunks of logits alive together in the backward pass of learner/logprobs.py.

    All logits, where they fit into one chunk: kept, copied, and their probabilities; in half precision also their
    product before it becomes float32, and its gradient. Otherwise a chunk's log-probabilities and probabilities, and
    their gradient in half precision.
    """
    halves = 1 if item < FLOAT32 else 0
    whole = tokens * model.vocabulary * FLOAT32
    if whole <= chunk_bytes:
        return whole * (6 + halves) // 2
    return max(chunk_bytes, FLOAT32 * max(tokens, model.vocabulary)) * (4 + halves) // 2


def _feed_forward(model: ModelSizes, tokens: int, item: int) -> int:
    """Saved by a layer's second half: its norm, what that gives, and four tensors of the gated feed-forward."""
    return _norm(tokens, model.hidden, item) + tokens * (model.hidden + 4 * model.intermediate) * item


def _flash_backward(model: ModelSizes, tokens: int, keys: int, item: int) -> int:
    """FlashAttention 2's gradients, and what it adds them up in.

    The queries' gradient is added up in float32, with 128 rows to spare behind each stretch: as many as it has keys, or
    fewer, unless sequences are very short. Where query heads share a key head, each first has gradients of its own of
    all keys and values.
    """
    adding = (tokens + keys) * model.heads * -(-model.head_width // _FLASH_WIDTH) * _FLASH_WIDTH * FLOAT32
    shared = model.query_width if model.heads != model.kv_heads else 0
    return adding + 2 * tokens * model.query_width * item + 2 * keys * (model.kv_width + shared) * item


def _norm(tokens: int, width: int, item: int) -> int:
    """Saved by a norm (RMS): what it is given, in float32; the normalised, in the model's dtype; the scale."""
    return tokens * width * (FLOAT32 + item) + tokens * FLOAT32
