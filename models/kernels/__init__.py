"""Fast kernels for training: attention, loss and LoRA."""
