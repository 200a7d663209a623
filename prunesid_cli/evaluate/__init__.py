"""Evaluation: accuracy against budget and method, on a user's own questions."""
