"""Kills, flipped bits, cut files and mangled configuration: how many are survived or found, counted.

`python -m tests.reliability.harness` tries it on this checkout and prints a table, as docs/reliability.md shows it;
`--kills N -- COMMAND` kills a real run N times at random moments, the same command going on each time. The short form
is test_harness.py. It changes files of the checkout for a moment and leaves them as they were, so use a scratch clone.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from quest import artifacts
from quest.artifacts import ArtifactError
from quest.config.values import ConfigError

LEFT = (".*.partial*", "*.progress.safetensors")  # what a killed process may leave until the next goes on


@dataclass
class Count:
    """tried: how often. right: how often it came out right. wrong: what happened otherwise, a line each."""

    tried: int = 0
    right: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, wrong: str | None) -> None:
        self.tried += 1
        self.right += wrong is None
        self.wrong += [] if wrong is None else [wrong]


NOTHING = "nothing was said"


def outcome(load: Callable[[], Any], name: str) -> str | None:
    """None if ``load`` refuses by name, as a person is told; what happened instead otherwise."""
    try:
        load()
    except (ArtifactError, ConfigError) as error:
        return None if name in str(error) else f"{name} is not named: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return NOTHING


@contextmanager
def replaced(file: Path, content: bytes) -> Iterator[None]:
    """Within, ``file`` holds ``content``."""
    before, mode = file.read_bytes(), file.stat().st_mode
    file.chmod(0o644)
    try:
        file.write_bytes(content)
        yield
    finally:
        file.write_bytes(before)
        file.chmod(mode)


def flipped(content: bytes, rng: random.Random) -> bytes:
    position = rng.randrange(len(content))
    return content[:position] + bytes([content[position] ^ 1 << rng.randrange(8)]) + content[position + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def damages(
    files: Sequence[Path],
    damage: Callable[[bytes, random.Random], bytes],
    load: Callable[[Path], Any],
    times: int,
    rng: random.Random,
    named: Callable[[Path], str] = str,
) -> Count:
    """Damage random ``files``, one at a time: right is a refusal that names the file."""
    count = Count()
    for _ in range(times):
        file = rng.choice(files)
        with replaced(file, damage(file.read_bytes(), rng)):
            count.add(outcome(lambda file=file: load(file), named(file)))
    return count


def artifact_reader(files: Sequence[Path]) -> Callable[[Path], Any]:
    """Reads one of ``files``, whole artifacts by now, as the kind that it is now."""

    def read(file: Path, kind: str) -> Any:
        return (artifacts.load_json if file.suffix == ".json" else artifacts.load_tensors)(file, kind)

    def kind(file: Path) -> str:
        try:
            read(file, "")
        except ArtifactError as error:
            return re.findall(r"an artifact of kind '(.+)' where", str(error))[0]
        raise AssertionError(f"{file}: of no kind")

    kinds = {file: kind(file) for file in files}
    return lambda file: read(file, kinds[file])


def mangled(content: Any, rng: random.Random) -> Any:
    """YAML with one value, somewhere, replaced by what does not belong there, or one key by another."""
    content = yaml.safe_load(yaml.safe_dump(content))
    places = list(_places(content))
    holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.2:
        holder[f"{key}x"] = holder.pop(key)
    else:
        holder[key] = rng.choice(STRANGE)
    return content


STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "20",
    "a\nb",
    "\u2028",
    [],
    {},
]
STRANGE += [[1], {"a": 1}, [[]], "x" * 5000, "$(touch pwned)", "../..", "/", "é", "2026-11-27"]


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from _places(value)


def mangles(files: Sequence[Path], load: Callable[[Path], Any], times: int, rng: random.Random) -> Count:
    """Mangle random YAML files: right is that it is read all the same, or refused as a person is told."""
    count = Count()
    for _ in range(times):
        file = rng.choice(files)
        if rng.random() < 0.5:
            data = yaml.safe_dump(mangled(yaml.safe_load(file.read_text()), rng), allow_unicode=True).encode()
        else:
            data = (flipped if rng.random() < 0.5 else cut)(file.read_bytes(), rng)
        with replaced(file, data):
            said = outcome(lambda file=file: load(file), "")
        count.add(None if said == NOTHING else said and f"{file.name}: {said}")
    return count


@dataclass
class Kills(Count):
    """slowest: seconds until the last job of a killed run had ended."""

    slowest: float = 0.0


def kills(
    command: Sequence[str], root: Path, times: int, between: tuple[float, float], rng: random.Random, log: Path
) -> Kills:
    """Kill a run ``times`` times, each after a random number of seconds, and start the same command again at once.

    Right is a start that goes on: it is at work when it is killed in turn, or ends well. Jobs that outlive their run by
    more than half a minute are wrong too. The last start is left to end.
    """
    count = Kills()
    for turn in range(times + 1):
        with log.open("ab") as output:
            output.write(f"\n=== start {turn}\n".encode())
            output.flush()
            process = subprocess.Popen(command, cwd=root, stdout=output, stderr=output, start_new_session=True)
        try:
            code = process.wait(None if turn == times else rng.uniform(*between))
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
            process.wait()
        if turn:
            count.add(None if code in (None, 0) else f"start {turn} ended with {code}; see {log}")
        if code is not None:
            break
        seconds = _outlived(process.pid)
        count.slowest = max(count.slowest, seconds)
        if seconds > 30:
            count.wrong.append(f"a job of start {turn} went on")
    return count


def _outlived(run: int) -> float:
    """Seconds until no job of a killed run was left, at most a minute."""
    begun = time.monotonic()
    while time.monotonic() - begun < 60 and any(_jobs(run)):
        time.sleep(0.05)
    return time.monotonic() - begun


def _jobs(run: int) -> Iterator[int]:
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"QUEST_RUN={run} ".encode() in file.read_bytes():
                yield int(file.parent.name)
        except OSError:
            continue


WRITER = """
import sys
from pathlib import Path
from quest.artifacts import Manifest, save_json
for number in range(10**9):
    save_json(Path(sys.argv[1]), {"number": number, "more": "x" * 200_000}, Manifest(kind="toy"))
    print(number, flush=True)
"""


def writes(times: int, rng: random.Random) -> Count:
    """Kill a process that writes an artifact again and again: right is that a whole one is there, and that the next
    write leaves it alone in its folder."""
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "toy.json"
        for _ in range(times):
            with subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                process.stdout.readline()
                alone = [entry.name for entry in Path(folder).iterdir() if not entry.name.endswith(".partial.json")]
                time.sleep(rng.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
            said = outcome(lambda: artifacts.load_json(file, "toy"), "")
            count.add(None if said == NOTHING and alone == [file.name] else f"{said}, {alone}")
        artifacts.save_json(file, {}, artifacts.Manifest(kind="toy"))
        if (left := [entry.name for entry in Path(folder).iterdir()]) != [file.name]:
            count.wrong.append(f"left: {left}")
    return count


def load_run(file: Path) -> Any:
    """Read the configuration that ``file`` is a part of, as a run of it would."""
    from quest.config.dataset import load_dataset
    from quest.config.run import load
    from quest.config.variants import load_variants
    from quest.report import published

    if file.name == "published.yaml":
        return published.load()
    if file.name == "variants.yaml":
        return load_variants()
    if file.parent.name == "datasets":
        return load_dataset(file.stem)
    return load(file)


def of_checkout(root: Path, times: int, rng: random.Random) -> dict[str, Count]:
    """Everything but kills of runs, on the files of a checkout whose results were pulled."""
    from workflow import damage, records

    whole = [
        file
        for folder in ("results", "data/models")
        for file in sorted((root / folder).rglob("*"))
        if file.suffix in (".json", ".safetensors")
        and "plan" not in file.parts
        and "scores" not in file.parts
        and file.name != records.NAME
        and file.stat().st_size < 2**24
    ]
    plain = [root / name for name in records.expected(root) if damage._is_plain(name) and (root / name).exists()]
    objects = [file for file in sorted((root / "data/store").rglob("*")) if file.is_file()]
    config = [*sorted((root / "config").glob("*.yaml")), *sorted((root / "config/datasets").glob("*.yaml"))]

    def name(file: Path) -> str:
        return file.relative_to(root).as_posix()

    def refuse(_file: Path) -> None:
        damage.refuse(root)

    def check_store(_file: Path) -> None:
        if sentences := list(damage.everything(root)):
            raise ArtifactError(sentences[0])

    read = artifact_reader(whole)
    found = {
        "bits flipped in artifacts": damages(whole, flipped, read, times, rng),
        "artifacts cut short": damages(whole, cut, read, times, rng),
    }
    if plain:
        found["bits flipped in scores, tables and pictures"] = damages(plain, flipped, refuse, times // 10, rng, name)
        found["scores, tables and pictures cut short"] = damages(plain, cut, refuse, times // 10, rng, name)
    found |= {
        "bits flipped in the store": damages(objects, flipped, check_store, times // 50, rng, name),
        "configuration files mangled": mangles(config, load_run, times, rng),
        "writers killed": writes(times // 20, rng),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what damage is found and which kills are survived.")
    parser.add_argument("--times", type=int, default=1_000, help="how often each is tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0, help="how often COMMAND is killed; then nothing else is tried")
    parser.add_argument("--between", type=float, nargs=2, default=(5, 60), help="seconds until a kill")
    parser.add_argument("command", nargs="*")
    given = parser.parse_args()
    rng, root = random.Random(given.seed), Path.cwd()
    if given.kills:
        log = root / "logs/kills.log"
        log.parent.mkdir(exist_ok=True)
        killed = kills(given.command, root, given.kills, tuple(given.between), rng, log)
        left = [str(file) for pattern in LEFT for file in (root / "results").rglob(pattern)]
        print(f"the last job ended {killed.slowest:.1f} s after its run; files left at the end: {left or 'none'}")
        found: dict[str, Count] = {"runs killed": killed}
    else:
        found = of_checkout(root, given.times, rng)
    print("| tried | times | right |\n|---|---|---|")
    for name, count in found.items():
        print(f"| {name} | {count.tried} | {count.right} |")
    for name, count in found.items():
        for line in count.wrong[:20]:
            print(f"{name}: {line[:300]}")
    sys.exit(any(count.wrong for count in found.values()))


if __name__ == "__main__":
    main()
