"""The schema registry: one client, for reading schemas and registering ours."""
