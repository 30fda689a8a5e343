"""Picture files: which files are pictures, their formats, and the conversion of their colours to sRGB."""
