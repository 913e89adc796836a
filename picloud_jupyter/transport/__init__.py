"""The wire: the one HTTP client, where the service lives, and starting the embedded one."""
