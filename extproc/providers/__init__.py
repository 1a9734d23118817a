"""External providers: how a request is made theirs, and how their answers become the client's. Pure."""
