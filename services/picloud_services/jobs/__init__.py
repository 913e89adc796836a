"""Jobs: what they are (words), how they live (lifecycle), where they are kept (store), the API (service)."""
