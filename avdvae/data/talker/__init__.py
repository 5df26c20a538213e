"""Talker, the embedded corpus: one set of articulatory trajectories drives both a voice and a face.

The modules in order: phones (sentences) -> articulation (trajectories) -> voice and face (sound and pictures), with the
parameters of people (speakers, emotions); corpus writes the files.
"""
