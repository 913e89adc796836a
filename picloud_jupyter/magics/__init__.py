"""``%%picloud``: a notebook cell that runs as a job. `%load_ext picloud_jupyter` loads it."""
