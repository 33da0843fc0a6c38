"""Try many cases of every kind; print the seed first, each finding, and the figures.

python -m tests.fuzz --cases 50000 --seed 7
"""

from __future__ import annotations

import argparse
import importlib
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import cases, outcomes

#: Kind -> its share of the cases: those that are quick and that strangers send come more often.
KINDS = {"recipes": 0.2, "pictures": 0.44, "weights": 0.1, "archives": 0.2, "answers": 0.03, "folders": 0.03}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    parser.add_argument("--kind", choices=KINDS, help="this kind alone")
    settings = parser.parse_args()
    print(f"seed {settings.seed}", flush=True)
    findings = 0
    for kind in [settings.kind] if settings.kind else KINDS:
        count = settings.cases if settings.kind else round(KINDS[kind] * settings.cases)
        make = importlib.import_module(f"tests.fuzz.{kind}").make
        outcomes.clear()
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            for finding in cases(make, settings.seed, count, Path(folder)):
                findings += 1
                print(finding, flush=True)
        said = ", ".join(f"{number} {name}" for name, number in sorted(outcomes.items()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"{kind}: {count} cases in {time.monotonic() - began:.0f} s: {said}; {peak} MB at most", flush=True)
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
