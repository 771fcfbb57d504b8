"""Verify a run's numbers: python scripts/verify_run.py RUN

--help explains it. The code is in grpo_guard/command/verify.py.
"""

from grpo_guard.command.verify import main

if __name__ == "__main__":
    main()
