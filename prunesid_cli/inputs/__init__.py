"""Input files: listing, decoding of images and clips, and the partitions of `--shard`."""
