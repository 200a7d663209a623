"""The cache of kept visual tokens; its format is specified in format.py. Importing it imports no torch."""

from prunesid_cli.tokencache.calibration import Calibration, calibrated, read_calibration, sample_of, write_calibration
from prunesid_cli.tokencache.format import PATTERN, Item, Run, Shard
from prunesid_cli.tokencache.reader import Cache, open_cache, read_header, read_tokens, shard_paths
from prunesid_cli.tokencache.verify import verify, verify_all
from prunesid_cli.tokencache.writer import CacheWriter, Entry, write_shard

__all__ = [
    "PATTERN",
    "Cache",
    "CacheWriter",
    "Calibration",
    "Entry",
    "Item",
    "Run",
    "Shard",
    "calibrated",
    "open_cache",
    "read_calibration",
    "read_header",
    "read_tokens",
    "sample_of",
    "shard_paths",
    "verify",
    "verify_all",
    "write_calibration",
    "write_shard",
]
