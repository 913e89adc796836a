"""Notebook cells."""
