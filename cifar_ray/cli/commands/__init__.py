"""The verbs with subcommands: store, review, keys and cache."""
