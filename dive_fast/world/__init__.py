"""The pocket world: seeded synthetic pedestrians, seen by RGB and near-infrared cameras."""
