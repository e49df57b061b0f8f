"""Public data sets from their original files: images, tables and text, split and normalised the same way every time."""
