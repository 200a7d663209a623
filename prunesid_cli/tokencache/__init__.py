"""The cache of kept visual tokens; its format is specified in format.py. Importing it imports no torch."""

from prunesid_cli.tokencache.calibration import Calibration, calibrated, read_calibration, sample_of, write_calibration
from prunesid_cli.tokencache.format import Item, Run, Shard
from prunesid_cli.tokencache.index import Known
from prunesid_cli.tokencache.reader import Cache, open_cache
from prunesid_cli.tokencache.shard import read_header, read_tokens
from prunesid_cli.tokencache.storage import STORES
from prunesid_cli.tokencache.table import Stamp
from prunesid_cli.tokencache.verify import verify, verify_all
from prunesid_cli.tokencache.writer import CacheWriter, Entry, Limits

__all__ = [
    "STORES",
    "Cache",
    "CacheWriter",
    "Calibration",
    "Entry",
    "Item",
    "Known",
    "Limits",
    "Run",
    "Shard",
    "Stamp",
    "calibrated",
    "open_cache",
    "read_calibration",
    "read_header",
    "read_tokens",
    "sample_of",
    "verify",
    "verify_all",
    "write_calibration",
]
