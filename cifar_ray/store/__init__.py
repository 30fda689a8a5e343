"""Model bundles and the store that names them."""
