"""Which ModelServer serves a request, which endpoints it has, and what has become of every request that was sent."""
