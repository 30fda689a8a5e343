"""What is in the pictures of a data set before they become arrays."""
