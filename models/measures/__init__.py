"""Evaluation of a trained model, against its base model or against real replies."""
