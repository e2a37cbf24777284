"""The memory planner: where every GiB of a device goes, before anything is allocated.

`sizes` reads a model's shape; `learner_memory`, `activations` and `engine_memory` are the arithmetic, in bytes;
`memory_plan` puts them together on a `devices` entry, `run_plan` on all GPUs of a placement;
`advice` says what to change; `table` shows it; `resolve` fills a run's configuration by it.
Nothing here imports torch. What this machine has is asked by `devices` and `host_memory` alone.
"""
