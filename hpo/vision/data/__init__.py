"""Images: sources, decoding, cache and splits. Does not import PyTorch."""
