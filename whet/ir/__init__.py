"""The tensor graph: types, symbolic sizes, Values and Graphs, and rules that rewrite them."""
