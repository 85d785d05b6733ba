"""The schema registry: one client, for reading schemas and for writing ours."""
