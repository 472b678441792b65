"""Inference engines: torch, OpenVINO, vLLM."""
