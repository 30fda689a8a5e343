"""Routes for jobs, which predict many pictures in the background."""
