"""Pages and plots that show what a ReID checkpoint retrieves."""
