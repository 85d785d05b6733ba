"""The page and its JSON API: reads skyheed's topics and Redis, and writes only its index."""
