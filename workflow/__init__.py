"""What the rules compute, as tested Python: cells, code hashes, records, plans."""
