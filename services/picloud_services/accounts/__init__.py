"""Who may ask for what: users, keys of running jobs, caps."""
