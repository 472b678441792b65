"""What makes a step fast: attention, loss and LoRA without wasted work."""
