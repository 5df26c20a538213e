"""Talker, the embedded corpus: one set of articulatory trajectories drives both a voice and a face.

The way through the folder: phones (what is said) -> articulation (how it moves) -> voice and face (what is heard and
seen), coloured by people (who says it, in which mood), written by corpus.
"""
