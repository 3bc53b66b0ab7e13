"""What a generated image is worth: scores by a ReID model, filters, distances between sets, and the dataset's card."""
