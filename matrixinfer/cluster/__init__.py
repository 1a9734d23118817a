"""The world of objects: the Cluster protocol and its memory implementation, directories, the feed, and the controllers' loop.

`protocol` says what a cluster does; `memory` does it without an API server (`objects`, `ownership`, `garbage`, `history` are its
parts); `directory` and `documents` fill one from YAML; `feed` shows one to other processes; `store`, `queue`, `plan` and `loop`
are what controllers run on. Nothing here knows what the kinds mean.
"""
