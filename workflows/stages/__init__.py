"""The stages of a pipeline, a file each; runs/order.py has their order."""
