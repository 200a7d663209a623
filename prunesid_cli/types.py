"""Frozen values that pass between the stages, and the shape letters used in every docstring.

    B  batch                       T  kept visual tokens
    S  segments of one item        G  groups
    N  visual tokens of a segment  L  prompt length
    C  width at the cut            D  width of the language model
"""

from __future__ import annotations
