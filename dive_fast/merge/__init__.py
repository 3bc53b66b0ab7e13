"""Real sets and synthesized pairs as one new tree that trainers read, and a dataset's manifest as a Parquet table."""
