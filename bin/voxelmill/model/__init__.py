"""Models: from an untrusted nnU-Net folder to a package, and from a package to networks."""
