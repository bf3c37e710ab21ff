"""Conversations made from utterances: corpora, speech boundaries, rooms, turn taking."""
