"""An image set: its files, their order, sizes and digests."""
