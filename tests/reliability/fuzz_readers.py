"""Damage files of every format at random, and load them.

Each damaged file has to end in one of these, within 5 seconds (of processor time, as
the machine may be shared) and 500 MB:

- `refused`: a `MijaxError`;
- `equal`: it loads, and the value equals the original;
- `another value`: it loads as a different valid value. A flipped bit within the numbers
  of a format without checksums, or a config changed to another valid config, cannot be
  detected. For formats with checksums (native models, checkpoints, dictionaries,
  stores, resume files) this outcome counts as a failure.

    python tests/reliability/fuzz_readers.py --files 2500 --seed 0

prints a table of counts, and exits with 1 if any file did anything else.
"""

import argparse
import collections
import copy
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability.reader_cases import CASES

import mijax

SECONDS, HANGS, MEGABYTES = 5, 60, 500
ODD = [
    *(None, True, False, "x", "", "\x1b[31m", -1, 0, 1, 2**31, 2**40, 2**64, 10**400),
    *(0.5, 1e-30, float("nan"), float("inf"), [], {}, [[]], {"a": 1}, [1, "a", None]),
]


class TooSlow(BaseException):
    """Raised by the alarm."""


def flip(data, draw):
    """Flip 1 to 8 bits."""
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        place = draw.randrange(len(data))
        data[place] ^= 1 << draw.randrange(8)
    return data


def flip_early(data, draw):
    """Flip a bit of the first 2,000 bytes, where headers are."""
    data[draw.randrange(min(len(data), 2000))] ^= 1 << draw.randrange(8)
    return data


def truncate(data, draw):
    """Cut the end off."""
    return data[: draw.randrange(len(data))]


def extend(data, draw):
    """Add bytes at the end."""
    return data + draw.randbytes(draw.choice([1, 8, 64, 4096]))


def repeat(data, draw):
    """Copy a piece to another place."""
    size = draw.randrange(1, min(len(data), 256) + 1)
    source, target = (draw.randrange(len(data) - size + 1) for _ in range(2))
    data[target : target + size] = data[source : source + size]
    return data


def huge(data, draw):
    """Overwrite 4 or 8 bytes with a large number."""
    value = draw.choice([2**32 - 1, 2**31, 2**63, 2**64 - 1, 2**40, 0])
    width = draw.choice([4, 8])
    early = min(len(data), 2000) if draw.random() < 0.7 else len(data)
    place = draw.randrange(max(1, early - width))
    data[place : place + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
    return data


def erase(data, draw):
    """Set a piece to zeros, or remove it."""
    size = draw.randrange(1, min(len(data), 256) + 1)
    place = draw.randrange(len(data) - size + 1)
    data[place : place + size] = bytes(size) if draw.random() < 0.5 else b""
    return data


BYTES = (flip, flip, flip_early, truncate, extend, repeat, huge, erase)


def containers(value):
    """List every dict and list inside a JSON value."""
    inner = value.values() if isinstance(value, dict) else value
    found = [value] if value else []
    for item in inner:
        if isinstance(item, dict | list):
            found += containers(item)
    return found


def change_json(content, draw):
    """Swap a value, or remove, add, double or nest keys; returns JSON text."""
    content = copy.deepcopy(content)
    places = containers(content)
    kind = draw.choice(["swap", "swap", "swap", "remove", "add", "twice", "deep"])
    if not places:
        return json.dumps(draw.choice(ODD))
    place = draw.choice(places)
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    key = draw.choice(keys)
    if kind == "remove":
        del place[key]
    elif kind == "add" and isinstance(place, dict):
        place[draw.choice(["x", "_x", "scale", "\x1b[2J", str(key) + "s"])] = 1
    elif kind == "deep":
        place[key] = "DEEP"
    else:
        place[key] = draw.choice(ODD)
    text = json.dumps(content)
    if kind == "deep":
        depth = draw.choice([20, 5000, 200_000])
        text = text.replace('"DEEP"', "[" * depth + "]" * depth)
    if kind == "twice" and isinstance(content, dict) and content:
        key, value = draw.choice(list(content.items()))
        text = text[:-1] + f", {json.dumps(key)}: {json.dumps(value)}}}"
    return text


def damage(path, draw):
    """Damage one file; returns the name of the damage."""
    data = bytearray(path.read_bytes())
    structured = draw.random() < 0.5
    if structured and path.suffix == ".safetensors" and len(data) > 8:
        length = int.from_bytes(data[:8], "little")
        text = change_json(json.loads(data[8 : 8 + length]), draw).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        return "header"
    if (
        structured
        and path.suffix in (".json", ".yaml", "")
        and data[:1] in (b"{", b"[")
    ):
        path.write_text(change_json(json.loads(data), draw), "utf-8")
        return "content"
    if not data:
        return "empty"
    how = draw.choice(BYTES)
    path.write_bytes(bytes(how(data, draw)))
    return how.__name__


def peak():
    """Return the peak of resident memory since `reset`, in MB."""
    status = Path("/proc/self/status").read_text()
    line = next(row for row in status.splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def reset():
    """Forget the peak of resident memory; returns the present one, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def measured(load, path):
    """Load a file; returns outcome, value or error, seconds and megabytes."""

    def ring(number, frame):
        raise TooSlow

    signal.signal(signal.SIGALRM, ring)
    before, begun = reset(), time.process_time()
    signal.alarm(HANGS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome, value = "loaded", load(path)
    except mijax.MijaxError as error:
        outcome, value = "refused", error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, value = "failed", error
    finally:
        signal.alarm(0)
    return outcome, value, time.process_time() - begun, peak() - before


def judge(case, original, result):
    """Return the outcome of one damaged file, and what was wrong with it."""
    outcome, value, seconds, megabytes = result
    if seconds > SECONDS or megabytes > MEGABYTES:
        return "failed", f"took {seconds:.1f} s and {megabytes:.0f} MB"
    if outcome == "failed":
        trace = "".join(traceback.format_exception(value)[-4:])
        return "failed", f"{type(value).__name__}: {value!s:.200}\n{trace}"
    if outcome == "refused":
        text = str(value)
        short = text.isprintable() and len(text) < 2000
        return ("refused", "") if short else ("failed", f"message {text[:200]!r}")
    if value != original and case.checksums:
        return "failed", "loaded as another value in spite of checksums"
    return ("equal" if value == original else "another value"), ""


def fuzz(files, seed, folder, names=None, show=print):
    """Damage and load many files; returns counts by (case, outcome), and failures."""
    counts, failures = collections.Counter(), []
    draw = random.Random(seed)
    cases = [case for case in CASES if names is None or case.name in names]
    ready = {}
    for case in cases:
        source = folder / case.name.replace("/", "_")
        source.mkdir(parents=True)
        case.make(source)
        ready[case.name] = source, case.load(source)
        if case.load(source) != ready[case.name][1]:
            raise AssertionError(f"{case.name}: two loads of one file differ")
    for index in range(files):
        case = cases[index % len(cases)]
        source, original = ready[case.name]
        target = folder / "damaged" / source.name
        shutil.rmtree(target.parent, ignore_errors=True)
        shutil.copytree(source, target)
        options = sorted(p for p in target.rglob("*") if p.is_file())
        path = draw.choice(options)
        how = damage(path, draw)
        outcome, problem = judge(case, original, measured(case.load, target))
        counts[case.name, outcome] += 1
        if outcome == "failed":
            where = path.relative_to(target)
            failures.append((index, case.name, str(where), how, problem))
            show(f"#{index} {case.name} {where} {how}: {problem}")
    return counts, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of cases")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, failures = fuzz(given.files, given.seed, Path(folder), given.only)
    outcomes = ("refused", "equal", "another value", "failed")
    print(f"| format | files | {' | '.join(outcomes)} |")
    print("|---" * (len(outcomes) + 2) + "|")
    names = list(dict.fromkeys(name for name, _ in counts))
    for name in [*names, "all"]:
        row = [
            sum(
                n
                for (case, o), n in counts.items()
                if o == out and name in (case, "all")
            )
            for out in outcomes
        ]
        print(f"| {name} | {sum(row)} | {' | '.join(map(str, row))} |")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
