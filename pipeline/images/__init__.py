"""Image sets: where images come from, and their order, sizes and digests."""
