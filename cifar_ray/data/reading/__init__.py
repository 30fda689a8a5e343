"""The content of each picture of a data set, wherever it is."""
