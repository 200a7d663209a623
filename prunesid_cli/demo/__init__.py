"""The embedded model: a tiny, real LLaVA, trained by this package on scenes that it draws itself."""
