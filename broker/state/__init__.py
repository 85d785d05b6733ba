"""Everything that touches Redis: histories, the due queue, the books."""
