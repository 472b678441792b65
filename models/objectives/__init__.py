"""What training minimises: one file for each objective; registry.py names them all."""
