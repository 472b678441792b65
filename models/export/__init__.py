"""Export of a trained model to the formats of inference engines."""
