"""The runner: the resident interpreter in a container that runs calls one after another."""
