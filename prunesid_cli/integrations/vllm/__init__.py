"""Answers prompts from a cache with vLLM, which is given kept tokens in place of images."""
