"""The page and its JSON API. Reads skyheed's topics and Redis; writes only its own index."""
