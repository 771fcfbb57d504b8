"""Compare runs: python scripts/compare.py RUN [RUN ...]

--help explains it. The code is in grpo_guard/command/compare.py.
"""

from grpo_guard.command.compare import main

if __name__ == "__main__":
    main()
