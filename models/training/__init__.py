"""The training loop: engines, DeepSpeed, checkpoints, the adversarial trainer."""
