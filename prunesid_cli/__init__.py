"""Answer questions about many images and clips with a vision-language model, from the few visual tokens that matter."""

__version__ = "0.1.0"
