"""Pages for a browser: an evaluation with its changed answers, or what a cache keeps. A page is one file."""

DEFAULT_RECORDS = 1000
"""Records on a page, unless another number is asked for."""
