"""The ModelInfer controller: groups of pods that serve a model are made, rolled, recovered and counted.

`observe` reads the world into values, `plan` and `instances` are arithmetic over them, `children` builds manifests,
`status` says how it went, `reconcile` tells the story.
"""
