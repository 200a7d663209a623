"""Drawings of the tokens that were kept, as pictures or as terminal text."""
