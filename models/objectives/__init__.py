"""Training objectives, one file each; registry.py lists them all."""
