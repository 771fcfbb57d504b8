"""A fixture for the tests of all families."""

import pytest
from sampling import start


@pytest.fixture
def check_velocities_against_pipeline(monkeypatch):
    """Compare the policy with the velocities that the pipeline's scheduler gets in six steps."""

    def check(model, texts, **arguments):
        recorded = []
        step = model.pipe.scheduler.step

        def record_and_step(velocity, t, latents, **settings):
            recorded.append((latents, velocity))
            return step(velocity, t, latents, **settings)

        monkeypatch.setattr(model.pipe.scheduler, "step", record_and_step)
        model.pipe(
            texts,
            latents=start(model, texts),
            num_inference_steps=6,
            output_type="latent",
            **arguments,
        )
        condition = model.encode(texts)
        assert len(recorded) == 6
        for t, (x, expected) in zip(model.times(6)[:-1], recorded, strict=True):
            assert (model.policy(x, t.expand(len(x)), condition) - expected).abs().max() < 1e-6

    return check
