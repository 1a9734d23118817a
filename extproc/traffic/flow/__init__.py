"""Flow control: while a pool is saturated, requests wait here, by priority, and among equals by fair shares of tokens.

`gate` is a request's way through it, `queue` what waits for one pool, `counters` the shares, `accounts` what a request costs,
`callers` who asks and how urgently. When a pool is saturated is a detector's word.
"""
