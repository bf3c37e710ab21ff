"""Corpora: what they are, how they are fetched and stored, and how folders of any known shape are read."""
