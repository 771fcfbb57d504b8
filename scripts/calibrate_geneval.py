"""Compare two GenEval rewards: calibrate_geneval.py PICTURES PROMPTS REWARD REWARD

--help explains it. The code is in grpo_guard/command/calibrate.py.
"""

from grpo_guard.command.calibrate import main

if __name__ == "__main__":
    main()
