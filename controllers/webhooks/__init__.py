"""Admission: what the API server asks before it stores an object of ours, over HTTPS, with certificates that look after themselves."""
