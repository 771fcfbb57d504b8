"""Draw prompts with a run's checkpoint: python scripts/sample.py RUN

--help explains it. The code is in grpo_guard/command/sample.py.
"""

from grpo_guard.command.sample import main

if __name__ == "__main__":
    main()
