"""Finds how deep a pretrained network should stay frozen, with which learning rate and which head."""
