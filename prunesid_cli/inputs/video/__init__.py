"""Clips: which of their frames are looked at, and how they are decoded."""
