"""`python -m app.export`: a cross-encoder as an artefact that is served without torch."""
