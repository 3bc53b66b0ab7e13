"""ReID networks: backbones, heads, pretrained weights."""
