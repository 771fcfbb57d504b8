"""Serve a reward over HTTP: python scripts/serve_reward.py reward=pickscore port=8000 (--help: the choices)."""

from __future__ import annotations

from contextlib import suppress

import hydra
from omegaconf import DictConfig

from lib import cli


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="serve")
@cli.job
def main(cfg: DictConfig) -> None:
    """Load, say where, and serve until interrupted."""
    with suppress(KeyboardInterrupt):
        served = cli.build(cfg).open()
        print(f"{served.offer.reward} at {served.url}: {', '.join(served.offer.parts)}", flush=True)
        served.run()


if __name__ == "__main__":
    cli.run(main)
