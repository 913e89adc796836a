"""Migrations of the store: NNN_name.sql, forward only."""
