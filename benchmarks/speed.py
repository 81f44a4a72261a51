"""Every speed comparison, one after another, and the table of their ratios (`make bench`).

    python benchmarks/speed.py            # about an hour on two cores; results/*.json
    python benchmarks/speed.py --quick    # minutes: does everything run
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common
import grpo_vs_trl
import ppo_vs_trl
import reward_vs_trl
import tinyshakespeare


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    words = ["--quick"] if args.quick else []
    rows = [benchmark.main(words) for benchmark in (tinyshakespeare, reward_vs_trl, ppo_vs_trl, grpo_vs_trl)]
    rows.append(grpo_vs_trl.main([*words, "--shots", "6"]))
    print()
    for row in rows:
        print(common.verdict(row))
    return int(not args.quick and not all(row["met"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
