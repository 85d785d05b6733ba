"""The page and its JSON API: reads our own topics and Redis, and writes nothing but its index."""
