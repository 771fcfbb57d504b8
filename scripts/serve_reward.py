"""Serve a reward over HTTP: python scripts/serve_reward.py reward=pickscore port=8000

--help explains it. The code is in grpo_guard/command/serve.py.
"""

from grpo_guard.command.serve import start

if __name__ == "__main__":
    start()
