"""Quality of generated images: scores by a ReID model, filters, distances between sets, and the dataset's card."""
