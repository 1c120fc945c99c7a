"""Policies of this package inside the decoding loops of others."""
