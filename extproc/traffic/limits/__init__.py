"""Limits: what a route may be asked in a unit of time, in all and by each caller. Reserved at admission, settled at the end.

`rules` says which limits a request meets, `buckets` counts, `limiter` tells a request's way through them, `charging` what it
took in the end, `words` what the client reads of it.
"""
