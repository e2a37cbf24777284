"""The commands: runs, with Ray around them; plans, the tiny model, evaluation, looking at runs, benchmarks."""
