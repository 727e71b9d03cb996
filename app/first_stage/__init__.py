"""The first stage: quickly chooses the documents that the model scores. The setting is called `prefilter`."""
