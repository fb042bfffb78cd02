"""Images of one's own: sets of files as images, references made of them, and their metrics by the stages' protocol."""
