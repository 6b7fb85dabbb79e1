"""Files that survive: durable writes, stores of rows, the cache."""
