"""Published checkpoints: the adapter, models run in process, and the workers that run in other Pythons."""
