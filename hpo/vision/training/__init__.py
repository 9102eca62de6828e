"""Training: the loop, its step, optimizers, augmentation, averaging, the fitted head, checkpoints."""
