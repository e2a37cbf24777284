"""The rollout worker: the vLLM engine, the self-play round, environments, evaluation, the weight receiver."""
