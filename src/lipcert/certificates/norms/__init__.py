"""Certified norms of linear maps, and maps written down with an error bound."""
