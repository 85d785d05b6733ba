"""Classifications, what they become, and how they are read."""
