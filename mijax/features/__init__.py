"""The geometry of features: superposition, Fourier components."""
