"""A packed network: integer codes in as few bytes as they need, and tables of activation scales, in a diffusers model.

`layers` has its modules, `description` says which there are, as JSON, `assembly` puts them into a network and takes
them out of a quantized one, and `seal` is the checksum of all of it.
"""
