"""ReID training data: data sets, augmentation, samplers, batches."""
