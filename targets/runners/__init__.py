"""How an artifact is run: on this machine by the clock, or on an emulated ARM64 core by counting."""
