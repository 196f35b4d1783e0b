"""Pictures of plans: SVG and a self-contained page, with nothing but the standard library."""
