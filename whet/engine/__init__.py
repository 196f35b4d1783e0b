"""The portable engine file: pure data."""
