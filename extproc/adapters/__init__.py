"""The picker's edge: what listens, what watches the cluster, what asks the engines, what is shown to people."""
