"""The commands: each parses, calls, prints. Nothing here imports torch or transformers before it has to."""
