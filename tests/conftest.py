"""What holds of all tests: a property holds on any machine, however long it takes over an example."""

from hypothesis import settings

settings.register_profile("any machine", settings(), deadline=None)
settings.load_profile("any machine")
