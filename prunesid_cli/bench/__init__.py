"""How long each stage takes and what memory it needs, pruned and unpruned, and from where on pruning pays."""
