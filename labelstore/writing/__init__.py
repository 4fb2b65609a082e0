"""Writing blocks: the lease, encoding, sealing, and sweeping what a stopped build left."""
