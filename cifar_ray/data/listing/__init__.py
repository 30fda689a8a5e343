"""Which pictures a data set has, with their classes and splits: in folders or in tables."""
