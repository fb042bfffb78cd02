"""Stands in for the `quest` command: writes the files that a stage would, in no time, and notes that it was called.

What it writes depends on its arguments and the content of its input files, as a real stage's output does. With
QUEST_STUB_SLOW set to a file name it works on that output for a minute, half of it already written. With
QUEST_STUB_ARGUMENTS set to a file name it adds its arguments there, a JSON list a call.
"""

import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

OUTPUTS = ("--output", "--csv", "--markdown", "--grid", "--comparison", "--tradeoff", "--png", "--svg")


def main(arguments: list[str]) -> None:
    outputs = [Path(value) for option, value in itertools.pairwise(arguments) if option in OUTPUTS]
    inputs = [Path(value) for value in arguments if Path(value).is_file() and Path(value) not in outputs]
    digest = hashlib.sha256("\n".join(arguments).encode())
    for file in inputs:
        digest.update(file.read_bytes())
    with Path("calls.txt").open("a") as calls:
        calls.write(f"{arguments[0]} {outputs[0]}\n")
    if arguments_file := os.environ.get("QUEST_STUB_ARGUMENTS"):
        with Path(arguments_file).open("a") as all_arguments:
            all_arguments.write(f"{json.dumps(arguments)}\n")
    for file in outputs:
        file.parent.mkdir(parents=True, exist_ok=True)
        if str(file) == os.environ.get("QUEST_STUB_SLOW"):
            file.write_text("half of it")
            time.sleep(60)
        content = {"fid": int(digest.hexdigest()[:6], 16), "title": "not a number"}
        document = {"manifest": {"schema_version": 1}, "content": content}
        if arguments[0] == "score":
            document = {"fid": content["fid"]}
        file.write_text(json.dumps(document))


if __name__ == "__main__":
    main(sys.argv[1:])
