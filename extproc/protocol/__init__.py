"""One HTTP exchange as a state machine (`session`), and its protobuf codec (`codec`, `access_log`)."""
