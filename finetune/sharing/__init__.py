"""What the trials of a sweep share: facts, pixels, activations."""
