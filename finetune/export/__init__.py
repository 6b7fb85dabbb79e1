"""A trained network for others: as a folder, a model card, predictions."""
