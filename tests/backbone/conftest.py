"""What the families' tests share."""

import pytest


@pytest.fixture
def recorded(monkeypatch):
    """Draw by a pipeline: the latents and the velocity, guidance included, that its scheduler gets at each step."""

    def draw(pipe, texts, **asked):
        seen, step = [], pipe.scheduler.step

        def spied(velocity, t, latents, **given):
            seen.append((latents, velocity))
            return step(velocity, t, latents, **given)

        monkeypatch.setattr(pipe.scheduler, "step", spied)
        pipe(texts, output_type="latent", **asked)
        return seen

    return draw
