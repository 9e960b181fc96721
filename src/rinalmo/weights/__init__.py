"""Weights: where published models are, and reading and writing them in every layout."""
