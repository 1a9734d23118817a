"""Real engines: how to run them for the contract tests."""
