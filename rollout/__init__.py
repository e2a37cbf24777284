"""The rollout worker: the vLLM engine, the self-play round, environments, rewards, evaluation."""
