"""How a run executes: prefetching, batch size, memory, devices, atomic files and shutdown. Knows nothing of models."""
