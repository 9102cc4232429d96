"""Models that lie elsewhere: S3-compatible stores, web servers and the Hugging Face hub."""
