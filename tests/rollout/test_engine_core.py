"""Which cache blocks requests find once weights have changed under them; on vLLM's own scheduler, without a model."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_engine import NEVER_SAMPLED, save, text, tiny_model

from rollout.engine_core import _change_salt

BLOCK = 32
PROMPT = text(1, 3 * BLOCK + 5)

MakeScheduler = Callable[..., "Stepped"]


class Stepped:
    """A scheduler, and the model's part of each step: every request that is computed so far samples a 7."""

    def __init__(self, config: Any, blocks: int) -> None:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_function)
        self._hasher = get_request_block_hasher(BLOCK, hash_function)
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
        config.cache_config.num_gpu_blocks = blocks
        self.scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
        )
        self.core = SimpleNamespace(scheduler=self.scheduler)

    def request(self, name: str, salt: str, *, prompt: list[int] = PROMPT, max_tokens: int = 500) -> Any:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        parameters = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        return Request(name, prompt, parameters, None, cache_salt=salt, block_hasher=self._hasher)

    def add(self, name: str, salt: str, **arguments: Any) -> Any:
        request = self.request(name, salt, **arguments)
        self.scheduler.add_request(request)
        return request

    def step(self) -> dict[str, int]:
        """Of the requests that begin or begin again in this step: the tokens of which they found the cache."""
        from vllm.v1.outputs import ModelRunnerOutput

        before = {request.request_id for request in self.scheduler.running}
        output = self.scheduler.schedule()
        found = {
            request.request_id: request.num_computed_tokens - output.num_scheduled_tokens[request.request_id]
            for request in self.scheduler.running
            if request.request_id not in before
        }
        names = list(output.num_scheduled_tokens)
        computed = [
            self.scheduler.requests[name].num_computed_tokens >= self.scheduler.requests[name].num_tokens
            for name in names
        ]
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: i for i, name in enumerate(names)},
                sampled_token_ids=[[7] if done else [] for done in computed],
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        return found

    def change_salt(self, salt: str) -> list[str]:
        from vllm.v1.core.sched.interface import PauseState

        self.scheduler.set_pause_state(PauseState.PAUSED_ALL)
        running = _change_salt(self.core, salt)
        self.scheduler.set_pause_state(PauseState.UNPAUSED)
        return running


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> MakeScheduler:
    from vllm.engine.arg_utils import EngineArgs

    folder = save(tiny_model(0, eos=NEVER_SAMPLED), tmp_path_factory.mktemp("scheduled"))

    def make(*, sequences: int = 4, blocks: int = 100, step_tokens: int = 4096) -> Stepped:
        arguments = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            max_num_seqs=sequences,
            max_num_batched_tokens=step_tokens,
            enable_chunked_prefill=True,
            max_model_len=512,
            block_size=BLOCK,
            enable_prefix_caching=True,
            scheduling_policy="priority",
        )
        return Stepped(arguments.create_engine_config(), blocks)

    return make


def test_one_prompt_shares_cache_under_one_salt(make: MakeScheduler) -> None:
    """What the other tests rest on."""
    stepped = make()
    stepped.add("first", "0")
    assert stepped.step() == {"first": 0}
    stepped.add("second", "0")
    assert stepped.step() == {"second": 3 * BLOCK}


def test_queued_request_finds_nothing_of_older_weights(make: MakeScheduler) -> None:
    stepped = make(sequences=1)
    first = stepped.add("first", "0", max_tokens=3)
    stepped.add("queued", "0")
    stepped.step()
    assert stepped.change_salt("1") == ["first"]
    assert first.cache_salt == "0"
    found: dict[str, int] = {}
    while "queued" not in found:
        found = stepped.step()
    assert found == {"queued": 0}


def test_request_under_way_at_the_change_finds_nothing_of_older_weights(make: MakeScheduler) -> None:
    stepped = make()
    stepped.add("first", "0")
    late = stepped.request("late", "0")
    stepped.step()
    stepped.change_salt("1")
    stepped.scheduler.add_request(late)
    stepped.add("new", "1")
    assert stepped.step() == {"late": 0, "new": 3 * BLOCK}


def test_blocks_that_kept_requests_complete_later_are_not_found(make: MakeScheduler) -> None:
    """Also of a request whose prompt was only half computed at the change."""
    stepped = make(step_tokens=40)
    half = stepped.add("half", "0")
    stepped.step()
    assert 0 < half.num_computed_tokens < len(PROMPT)
    assert stepped.change_salt("1") == ["half"]
    while half.num_output_tokens < 2 * BLOCK:
        stepped.step()
    stepped.add("new", "1", prompt=PROMPT + [7] * BLOCK)
    assert stepped.step() == {"new": 0}


def test_preempted_request_begins_anew_whenever_it_was_preempted(make: MakeScheduler) -> None:
    # 8 blocks of 32 for two requests of 101 tokens and more: the later one has to make room after 28 tokens.
    for preempted_first in (True, False):
        stepped = make(blocks=10)
        stepped.add("first", "0", max_tokens=60)
        second = stepped.add("second", "0", prompt=text(2, len(PROMPT)))
        stepped.step()

        def run_until_preempted(stepped: Stepped = stepped, second: Any = second) -> None:
            while second.num_preemptions == 0:
                stepped.step()

        if preempted_first:
            run_until_preempted()
            assert stepped.change_salt("1") == ["first"]
        else:
            assert sorted(stepped.change_salt("1")) == ["first", "second"]
            run_until_preempted()
        found: dict[str, int] = {}
        while "second" not in found:
            found = stepped.step()
        assert found == {"second": 0}
        assert second.cache_salt == "1"


def test_preempted_request_finds_its_own_blocks_while_the_weights_stay(make: MakeScheduler) -> None:
    """Without a change between, the test above would not find anything either if its blocks had been used by others."""
    stepped = make(blocks=10)
    stepped.add("first", "0", max_tokens=60)
    second = stepped.add("second", "0", prompt=text(2, len(PROMPT)))
    found: dict[str, int] = {}
    while second.num_preemptions == 0 or "second" not in found:
        found = stepped.step()
    assert found["second"] > 0


def test_salt_does_not_change_while_generation_goes_on(make: MakeScheduler) -> None:
    stepped = make()
    waiting = stepped.add("waiting", "0")
    with pytest.raises(RuntimeError, match="paused"):
        _change_salt(stepped.core, "1")
    assert waiting.cache_salt == "0"
