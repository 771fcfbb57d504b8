"""What the families' tests share."""

import pytest
from sampling import start


@pytest.fixture
def velocities_are_the_pipelines(monkeypatch):
    """Check the model's velocity at the latents of each of six steps of its pipeline: what the scheduler gets there."""

    def check(model, texts, **asked):
        seen, step = [], model.pipe.scheduler.step

        def spied(velocity, t, latents, **given):
            seen.append((latents, velocity))
            return step(velocity, t, latents, **given)

        monkeypatch.setattr(model.pipe.scheduler, "step", spied)
        model.pipe(
            texts, latents=start(model, texts), num_inference_steps=6, output_type="latent", **asked
        )
        condition = model.encode(texts)
        assert len(seen) == 6
        for t, (x, wanted) in zip(model.times(6)[:-1], seen, strict=True):
            assert (model.policy(x, t.expand(len(x)), condition) - wanted).abs().max() < 1e-6

    return check
