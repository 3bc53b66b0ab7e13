"""Pages about a dataset: galleries in a folder, and pages in one file, without server or network."""
