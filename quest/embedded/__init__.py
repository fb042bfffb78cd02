"""Small models of every family, on images that install with a package or are drawn by a program."""
