"""One request, from bytes to a decision."""
