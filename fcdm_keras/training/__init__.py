"""Training: the step, averages, optimizer, checkpoints, callbacks and logs."""
