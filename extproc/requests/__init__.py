"""Bodies in, requests out: what the clients' protocols mean to the picker, and the two changes it makes to a body.

`parse` turns an HTTP request into an `InferenceRequest`, `rewrite` changes the model and asks for usage without touching
any other byte, `paths` says which path speaks which protocol.
"""
