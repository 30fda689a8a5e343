"""Pictures of requests that a server saved for review, and the labels that people gave them."""
