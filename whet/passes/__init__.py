"""Graph to Graph, one function each."""
