"""What a model and its data are worth: figures, pictures and one report that opens offline."""
