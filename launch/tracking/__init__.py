"""Experiment trackers: the run's records in TensorBoard, Weights & Biases, MLflow or trackio."""
