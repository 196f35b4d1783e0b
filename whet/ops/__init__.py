"""Operators: one class each, with infer, reference and, where it is not primitive, lower."""
