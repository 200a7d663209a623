"""Clips: which of their frames are taken, and how those are decoded."""
