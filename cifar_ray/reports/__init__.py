"""Reports as HTML pages that open offline, and the figures in them."""
