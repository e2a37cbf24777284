"""What the engine's processes need, and takes long to import: imported by the fork server alone."""

import signal

from shared.processes import signal_at_parents_death

signal_at_parents_death(signal.SIGKILL)

import vllm.v1.engine.async_llm  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

from rollout.engine_vllm import set_title  # noqa: E402

if current_platform.is_cpu():
    import vllm.v1.worker.cpu_worker
else:
    import vllm.v1.worker.gpu_worker  # noqa: F401

# The library finds the place of its title only while nobody has changed the environment.
set_title("fork server")
