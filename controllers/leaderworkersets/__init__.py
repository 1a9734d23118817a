"""LeaderWorkerSet: its objects are run as ModelInfers, where the control plane is told to (`--leader-worker-sets`)."""
