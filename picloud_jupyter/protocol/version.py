"""The version of this product, once: client and service compare it, the build reads it."""

__version__ = "0.1.0"
