"""Serve a reward over HTTP: python scripts/serve_reward.py reward=pickscore port=8000 [--help]"""

from __future__ import annotations

from contextlib import suppress

import hydra
from omegaconf import DictConfig

from grpo_guard.console import cli
from grpo_guard.console.announcing import announce


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="serve")
@cli.job
def main(cfg: DictConfig) -> None:
    """Load the reward, print its address, and serve until interrupted."""
    announce()
    with suppress(KeyboardInterrupt):
        service = cli.build_parts(cfg)
        cli.hide_progress_bars()
        ready = service.open()
        print(f"{ready.offer.reward} at {ready.url}: {', '.join(ready.offer.parts)}", flush=True)
        ready.run()


def start() -> None:
    """Run the command line."""
    cli.run(main, "serve")


if __name__ == "__main__":
    start()
