"""One machine instead of a cluster: pods as processes, Envoy and the picker beside them, put together in `stack`."""
