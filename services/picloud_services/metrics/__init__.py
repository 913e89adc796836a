"""Resource samples: a ring in a database of their own; losing it breaks no promise."""
