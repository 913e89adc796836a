"""Bytes: how calls and results become bytes, what local code goes with them, and why not."""
