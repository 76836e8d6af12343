"""Models for other places: packed in a quarter of their size, and as one page that writes without a server."""
