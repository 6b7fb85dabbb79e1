"""What the records of a sweep say."""
