"""What is searched. The only place that may import both search and vision."""
