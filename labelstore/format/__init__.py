"""What the bytes of a store mean: columns, arrays, shards, seals, the root document."""
