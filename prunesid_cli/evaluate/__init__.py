"""Accuracy against budget and method, on a user's own questions: records, metrics, runner, statistics, plot."""
