"""The format of a store: columns, arrays, shards, seals, the root document."""
