"""What all families of diffusers pipelines share: recipe, loaded model, prompt encoding."""
