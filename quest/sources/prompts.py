"""Prompts chosen from a larger collection, the same ones for the same seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from quest.artifacts import write_bytes
from quest.diffusion.conditions import read_prompts


def choose(source: Path, output: Path, count: int, seed: int) -> None:
    """Write ``count`` prompts of ``source``, one a line, as `condition.prompts` names them.

    source: a text file with one prompt a line, or COCO's captions (.json), of which each image gives the first: the one
    with the lowest number. Raises ValueError when the file is not one of these or has too few.
    """
    prompts = coco_captions(source) if source.suffix == ".json" else read_prompts(source)
    if count > len(prompts):
        raise ValueError(f"--count: {count}, but {source} has {len(prompts)} prompts")
    # Python's generator, whose shuffle is the same under every version since 3.11 and needs no torch.
    chosen = random.Random(seed).sample(prompts, count)
    write_bytes(output, "".join(f"{prompt}\n" for prompt in chosen).encode())


def coco_captions(source: Path) -> list[str]:
    """One caption of each image of COCO's annotations, by the images' numbers. Raises ValueError for another file."""
    try:
        content: Any = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{source}: {error.strerror}; expected COCO's captions (.json)") from error
    except ValueError as error:
        raise ValueError(f"{source}: not valid JSON: {error}") from error
    try:
        captions = sorted((each["image_id"], each["id"], each["caption"]) for each in content["annotations"])
        of_image = {image: caption for image, _, caption in reversed(captions)}
        prompts = [" ".join(of_image[image].split()) for image in sorted(of_image)]  # some captions end in a new line
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{source}: found no list of annotations with image_id, id and caption ({error!r}); "
            "expected COCO's captions"
        ) from error
    if empty := sum(not prompt for prompt in prompts):
        raise ValueError(f"{source}: {empty} captions are empty")
    return prompts
