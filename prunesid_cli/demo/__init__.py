"""The embedded model: a tiny LLaVA, trained on drawn scenes, and the scenes and questions themselves."""
