"""Measure or predict what training costs: python scripts/bench.py BENCHMARK

--help explains it. The code is in grpo_guard/command/bench.py.
"""

from grpo_guard.command.bench import main

if __name__ == "__main__":
    main()
