"""The Ray cluster: connection, resource planning, errors, signals, and private parts of other libraries."""
