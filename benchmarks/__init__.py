"""Benchmarks: speed, start, memory, conformance and real models, against what people use today."""
