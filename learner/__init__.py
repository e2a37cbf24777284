"""The learner: collector, problem buffer, TRR++, the objective, DeepSpeed, the weight sender."""
