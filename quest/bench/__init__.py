"""Speed and memory of quest, beside what it is compared with; one module for each command ``quest bench …``."""
