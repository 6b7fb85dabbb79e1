"""The network: backbone, weights, where it is cut, and what is kept of it."""
