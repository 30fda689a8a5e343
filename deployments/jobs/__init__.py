"""Routes for jobs that predict many pictures beside the server."""
