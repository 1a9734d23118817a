"""The gateway controller: ModelServers, ModelRoutes and Pods become what Envoy has to do, and their status says how it went."""
