"""Which chunk runs where and when."""
