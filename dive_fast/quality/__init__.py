"""What a generated image is worth: scores by a ReID net, filters, distances between sets, and the dataset's card."""
