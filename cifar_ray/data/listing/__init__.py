"""List the pictures of a data set with their classes and splits, from folders, tables or shards."""
