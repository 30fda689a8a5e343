"""Pictures that a server was asked about, kept for people to look at, and the labels that people gave them."""
