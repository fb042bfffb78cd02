"""What quantized networks are learned from and how."""
