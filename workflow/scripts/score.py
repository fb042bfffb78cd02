"""The numbers of a metrics artifact and nothing else: `dvc metrics` makes a column of everything in a document."""

import json
import sys
from pathlib import Path

metrics, scores = map(Path, sys.argv[1:])
content = json.loads(metrics.read_text())["content"]
numbers = {key: value for key, value in content.items() if type(value) in (int, float)}
scores.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
