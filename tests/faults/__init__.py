"""Fault injection for caches: kills, interrupts, full disks, damaged files and concurrent writers.

`python -m tests.faults kills --items 2000 --kills 100`, and others: see --help.
"""
