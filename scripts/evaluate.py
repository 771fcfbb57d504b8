"""Score a run's pictures, or those of a folder: python scripts/evaluate.py RUN|PICTURES

--help explains it. The code is in grpo_guard/command/evaluate.py.
"""

from grpo_guard.command.evaluate import main

if __name__ == "__main__":
    main()
