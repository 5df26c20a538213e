"""avdvae: audio-visual and dynamical variational autoencoders for speech. Read `avdvae.protocols` first."""

__version__ = "0.1.0"
