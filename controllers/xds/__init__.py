"""IR to Envoy: resources (clusters, routes, listener), snapshots of them, and the server that hands them out."""
