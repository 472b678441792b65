"""The stages of a pipeline, one file each; runs/order.py has their order."""
