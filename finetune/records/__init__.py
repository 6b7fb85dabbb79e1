"""What a trial left: its record, its predictions, and where each file lies."""
