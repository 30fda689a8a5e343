"""Facts about the picture files of a data set, before they become arrays."""
