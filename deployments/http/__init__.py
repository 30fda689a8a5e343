"""The HTTP side of the server: access control, routes, uploads, API documents and pages."""
