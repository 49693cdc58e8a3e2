"""Properties are judged by what they show, not by how long a busy machine takes over one example."""

from hypothesis import settings

settings.register_profile("turnlane-pure", deadline=None)
settings.load_profile("turnlane-pure")
