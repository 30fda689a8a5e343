"""The HTML pages of the server, from templates."""
