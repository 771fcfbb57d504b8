"""Compare the clip range with the noise floor: python scripts/preflight.py clipping=guard

--help explains it. The code is in grpo_guard/command/preflight.py.
"""

from grpo_guard.command.preflight import start

if __name__ == "__main__":
    start()
