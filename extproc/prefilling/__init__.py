"""The prefill leg: what a ModelServer with prefill and decode pods adds to a request's story."""
