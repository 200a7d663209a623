"""Benchmark: time and memory of each stage with and without pruning, and the break-even points of pruning."""
