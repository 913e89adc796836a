"""Which software a job sees: the identity of a Python installation and whether a node has it."""
