"""How good a trained model is, against its base or against real replies."""
