"""What generates tokens: torch, OpenVINO, vLLM."""
