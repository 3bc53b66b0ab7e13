"""Training runs compared: several seeds, tables, plots, significance."""
