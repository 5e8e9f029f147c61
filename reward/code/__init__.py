"""Running model-written code: the isolation, the protocol with what runs inside it, and its tests."""
