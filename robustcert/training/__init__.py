"""Training under Lightning: the module, schedules, callbacks, optimizers and checkpoints."""
