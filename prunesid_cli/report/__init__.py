"""Pages for a browser: an evaluation with its changed answers, or what a cache keeps. A page is one file."""
