"""The engine simulator: its parts, and its likeness to vLLM."""
