"""The first stage: a fast choice of the documents that the model reads."""
