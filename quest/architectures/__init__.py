"""What the library knows of each kind of network."""
