"""The framework: the endpoint table, what a plugin is, the configuration, and the scheduler that runs a cycle."""
