"""What a picture file is: its format, before its pixels are decoded, and its colours, after."""
