"""An inference engine that computes nothing and answers like vLLM 0.32.

Clients, metric scrapers and KV-event subscribers see what the real engine would show them. The inside is two pure parts,
`kvcache` (which blocks are cached) and `batch` (what runs in the next step and how long it takes), and an edge around them:
`engine` turns steps into timers, `server` speaks HTTP, `events` speaks ZMQ.
"""
