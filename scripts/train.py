"""Train: python scripts/train.py clipping=guard reward=ocr iterations=30

--help explains it. The code is in grpo_guard/command/train.py.
"""

from grpo_guard.command.train import start

if __name__ == "__main__":
    start()
