"""Spreads `compress` over the machines of a Ray cluster. The driver lists the inputs and alone writes the cache."""
