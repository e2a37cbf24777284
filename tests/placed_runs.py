"""The tiny model in the placements for several GPUs, on the CPU: two workers, two ranks."""

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "launch/configs"
TINY = {
    "placement.device": "cpu",
    "rollout.workers": 2,
    "learner.ranks": 2,
    "rollout.max_sequences": 64,
    "rollout.max_open_tickets": 128,
    "model.dtype": "float32",
    "environment.prompts": "short",
    "environment.max_prime": 13,
    "sampling.max_prompt_tokens": 64,
    "sampling.max_response_tokens": 12,
    "environment.evaluation_problems_per_task": 16,
    "run.steps": 3,
    "run.evaluate_every": 3,
    "run.checkpoint_every": 0,
    "selfplay.references": 3,
    "learner.lr": 1e-3,
    "learner.max_tokens": 1024,
}
