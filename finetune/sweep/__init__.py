"""The sweep: its file, its search, its processes."""
